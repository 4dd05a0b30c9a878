use std::fmt;

use crate::{Calls, Ladder, Sampler, SchedulerConfig};

/// What there is to know about a sampler without running it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Row {
    /// Short name for a command line: `dpmpp-2m`.
    pub name: &'static str,
    /// The name people know it by, WebUI's if it has one: `DPM++ 2M`.
    pub title: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// The classes of diffusers that do the same, and the keys by which: [`from_config`](crate::from_config) reads all of them.
    pub diffusers: Option<&'static str>,
    /// WebUI's name: [`from_webui`](crate::from_webui) has WebUI's options.
    pub webui: Option<&'static str>,
    /// ComfyUI's name: [`from_comfyui`](crate::from_comfyui) has ComfyUI's options, and more names.
    pub comfyui: Option<&'static str>,
    /// Order of accuracy: halving the steps' length divides the error by 2 to this power. Of one that uses the steps before it is that once it
    /// is under way: from exact first steps, and without the lower orders of the last ones. Self-started, those are of second order at most.
    ///
    /// Of samplers that add noise to what steps of the ODE reach (the ancestral ones, DDPM, LCM, TCD, Restart) it is that of those steps. Of
    /// those that solve the SDE (DPM++ SDE, 2M SDE and 3M SDE, SA-Solver, ER-SDE) it is that on a given path of the noise, the strong order, of
    /// which all of them have 1; the deviation of what they make may be of a higher one, and without noise (`eta` 0) some are of the higher
    /// order that they document.
    pub order: usize,
    /// How often it calls the model, on a ladder of its conventions.
    pub calls: CallFormula,
    /// Where it ends for Stable Diffusion: `denoised` (the model's guess of the clean sample), `alpha-bar 0` (the cleanest noise level
    /// of the training), `sigma_min` (the smallest sigma of the training or the ladder) or `own formula`.
    pub ends: &'static str,
    /// What it needs: `nothing`, `integer timesteps` (those of the training, which it can't leave) or `unconditional output`.
    pub needs: &'static str,
    /// Whether it adds noise.
    pub stochastic: bool,
    /// The ladder it is mostly run on.
    pub default_ladder: Ladder,
    /// The sampler as the diffusers class makes it from the model's configuration.
    pub build: fn(&SchedulerConfig) -> Box<dyn Sampler>,
}

/// How many model calls a run of N steps takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallFormula {
    /// One a step.
    N,
    /// Two a step, but one for the step to sigma 0.
    TwoNLess1,
    /// One a step and one more in the first, if there are others.
    NPlus1,
    /// One a step and three more in the first three; N is at least 4.
    NPlus9,
    /// No more than this, whatever N is.
    AtMost(usize),
}

impl CallFormula {
    /// The number for `steps` steps.
    pub fn at(self, steps: usize) -> Calls {
        Calls::Exactly(match self {
            Self::N => steps,
            Self::TwoNLess1 => (2 * steps).saturating_sub(1),
            Self::NPlus1 if steps < 2 => steps,
            Self::NPlus1 => steps + 1,
            Self::NPlus9 => steps + 9,
            Self::AtMost(most) => return Calls::AtMost(most),
        })
    }
}

impl fmt::Display for CallFormula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::N => f.write_str("N"),
            Self::TwoNLess1 => f.write_str("2N - 1"),
            Self::NPlus1 => f.write_str("N + 1 (1 for N = 1)"),
            Self::NPlus9 => f.write_str("N + 9"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

impl Row {
    /// Whether the sampler can run on a ladder: DDIM can't leave the training timesteps, as Karras does.
    pub fn fits(&self, ladder: &Ladder) -> bool {
        let on_grid_only = (self.build)(&SchedulerConfig::default())
            .conventions()
            .on_grid_only;
        ladder.on_grid() || !on_grid_only
    }

    /// The names that WebUI and ComfyUI have for it.
    pub fn aliases(&self) -> impl Iterator<Item = &'static str> {
        [self.webui, self.comfyui].into_iter().flatten()
    }

    /// A row of a first-order sampler that calls the model once a step and ends at the denoised sample, without noise.
    pub(super) const fn new(
        name: &'static str,
        title: &'static str,
        paper: &'static str,
        default_ladder: Ladder,
        build: fn(&SchedulerConfig) -> Box<dyn Sampler>,
    ) -> Self {
        Self {
            name,
            title,
            paper,
            diffusers: None,
            webui: None,
            comfyui: None,
            order: 1,
            calls: CallFormula::N,
            ends: "denoised",
            needs: "nothing",
            stochastic: false,
            default_ladder,
            build,
        }
    }

    pub(super) const fn diffusers(mut self, classes: &'static str) -> Self {
        self.diffusers = Some(classes);
        self
    }

    /// The title is WebUI's name.
    pub(super) const fn webui(mut self) -> Self {
        self.webui = Some(self.title);
        self
    }

    pub(super) const fn comfyui(mut self, name: &'static str) -> Self {
        self.comfyui = Some(name);
        self
    }

    pub(super) const fn order(mut self, order: usize) -> Self {
        self.order = order;
        self
    }

    pub(super) const fn calls(mut self, calls: CallFormula) -> Self {
        self.calls = calls;
        self
    }

    pub(super) const fn ends(mut self, ends: &'static str) -> Self {
        self.ends = ends;
        self
    }

    pub(super) const fn needs(mut self, needs: &'static str) -> Self {
        self.needs = needs;
        self
    }

    pub(super) const fn stochastic(mut self) -> Self {
        self.stochastic = true;
        self
    }
}
