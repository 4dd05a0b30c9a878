use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Ladder, Sampler, SchedulerConfig, samplers::Calls};

/// What is known about a sampler without running it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SamplerRow {
    /// A short name for a command line, such as `dpmpp-2m`.
    pub name: &'static str,
    /// The name that people know, which is WebUI's if it has one, such as `DPM++ 2M`.
    pub title: &'static str,
    /// The address of the paper.
    pub paper: &'static str,
    /// The diffusers classes that do the same, and the keys that they need.
    /// [`from_config`](crate::from_config) reads all of them.
    pub diffusers: Option<&'static str>,
    /// WebUI's name. [`from_webui`](crate::from_webui) returns the sampler with WebUI's options.
    pub webui: Option<&'static str>,
    /// ComfyUI's name. [`from_comfyui`](crate::from_comfyui) returns the sampler with ComfyUI's
    /// options, and knows more names.
    pub comfyui: Option<&'static str>,
    /// The order of accuracy: halving the step size divides the error by 2 to this power.
    ///
    /// - For a sampler that uses earlier steps, it is the order once the method is under way: from
    ///   exact first steps, and without the lower orders of the last ones. If such a sampler starts
    ///   on its own, it is of second order at most.
    /// - For a sampler that adds noise to steps of the ODE (the ancestral samplers, DDPM, LCM, TCD
    ///   and Restart), it is the order of those steps.
    /// - For a sampler that solves the SDE (DPM++ SDE, 2M SDE and 3M SDE, SA-Solver and ER-SDE), it
    ///   is the order on a given path of the noise, the strong order, which is 1 for all of them.
    ///   The deviation of their results may have a higher order. Without noise (`eta` 0), some have
    ///   the higher order that they document.
    pub order: usize,
    /// How often the sampler calls the model, on a ladder with its conventions.
    pub calls: CallFormula,
    /// Where the sampler ends for Stable Diffusion: `denoised` (the model's guess of the clean
    /// sample), `alpha-bar 0` (the cleanest noise level of the training), `sigma_min` (the smallest
    /// sigma of the training or the ladder) or `own formula`.
    pub ends: &'static str,
    /// What the sampler needs: `nothing`, `integer timesteps` (it cannot leave the training
    /// timesteps) or `unconditional output`.
    pub needs: &'static str,
    /// Whether the sampler adds noise.
    pub stochastic: bool,
    /// The ladder that the sampler usually runs on.
    pub default_ladder: Ladder,
    /// Builds the sampler from the model's configuration, as the diffusers class does.
    pub build: fn(&SchedulerConfig) -> Box<dyn Sampler>,
    pub(crate) of_webui: Option<WebUi>,
    pub(crate) of_comfyui: &'static [ComfyUi],
    /// Returns the sampler with these options, which are JSON.
    pub(crate) read: fn(Value) -> Result<Arc<dyn Sampler>, serde_json::Error>,
    /// Returns the options of a sampler as JSON, if the sampler has the type of this row.
    pub(crate) options: fn(&dyn Sampler) -> Option<Value>,
}

/// How WebUI runs a sampler.
#[derive(Clone, Debug)]
pub(crate) struct WebUi {
    pub aliases: &'static [&'static str],
    /// The ladder for the schedule type Automatic.
    pub ladder: fn() -> Ladder,
    /// Whether the sampler has this ladder with every schedule type.
    pub own_ladder: bool,
    /// See [`Preset::ensd`](crate::names::Preset::ensd).
    pub ensd: bool,
    pub build: fn() -> Arc<dyn Sampler>,
}

impl WebUi {
    pub(super) const fn new(
        aliases: &'static [&'static str],
        ladder: fn() -> Ladder,
        build: fn() -> Arc<dyn Sampler>,
    ) -> Self {
        Self {
            aliases,
            ladder,
            own_ladder: false,
            ensd: false,
            build,
        }
    }

    pub(super) const fn ensd(mut self) -> Self {
        self.ensd = true;
        self
    }

    pub(super) const fn on_its_own_ladder(mut self) -> Self {
        self.own_ladder = true;
        self
    }
}

/// How ComfyUI runs a sampler.
#[derive(Clone, Debug)]
pub(crate) struct ComfyUi {
    pub name: &'static str,
    pub drop_next_to_last: bool,
    pub build: fn() -> Arc<dyn Sampler>,
}

impl ComfyUi {
    pub(super) const fn new(name: &'static str, build: fn() -> Arc<dyn Sampler>) -> Self {
        Self {
            name,
            drop_next_to_last: false,
            build,
        }
    }

    pub(super) const fn drop_next_to_last(mut self) -> Self {
        self.drop_next_to_last = true;
        self
    }
}

/// The number of model calls of a run with N steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallFormula {
    /// N: one call per step.
    N,
    /// 2N - 1: two calls per step, except one for the step to sigma 0.
    TwoNLess1,
    /// N + 1: one call per step, and one more in the first step if there are other steps.
    NPlus1,
    /// N + 9: one call per step, and three more in each of the first three steps. N is at least 4.
    NPlus9,
    /// At most this number, for any N.
    AtMost(usize),
}

impl CallFormula {
    /// Returns the number of calls for `steps` steps.
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

impl SamplerRow {
    /// Returns whether the sampler can run on a ladder. For example, DDIM cannot leave the training
    /// timesteps, as the Karras ladder does.
    pub fn fits(&self, ladder: &Ladder) -> bool {
        let on_grid_only = (self.build)(&SchedulerConfig::default())
            .conventions()
            .on_grid_only;
        ladder.on_grid() || !on_grid_only
    }

    /// Returns an iterator over the sampler's names in WebUI and ComfyUI.
    pub fn aliases(&self) -> impl Iterator<Item = &'static str> {
        [self.webui, self.comfyui].into_iter().flatten()
    }

    /// Makes the row of a first-order sampler of type `S` that calls the model once per step, ends
    /// at the denoised sample and adds no noise.
    pub(super) const fn new<S: Sampler + Serialize + DeserializeOwned>(
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
            of_webui: None,
            of_comfyui: &[],
            read: read::<S>,
            options: options::<S>,
        }
    }

    pub(super) const fn diffusers(mut self, classes: &'static str) -> Self {
        self.diffusers = Some(classes);
        self
    }

    /// Sets WebUI's name to the title.
    pub(super) const fn webui(mut self, of_webui: WebUi) -> Self {
        self.webui = Some(self.title);
        self.of_webui = Some(of_webui);
        self
    }

    /// Sets ComfyUI's name to the first of these names.
    pub(super) const fn comfyui(mut self, of_comfyui: &'static [ComfyUi]) -> Self {
        self.comfyui = Some(of_comfyui[0].name);
        self.of_comfyui = of_comfyui;
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

fn read<S: Sampler + DeserializeOwned>(
    options: Value,
) -> Result<Arc<dyn Sampler>, serde_json::Error> {
    Ok(Arc::new(serde_json::from_value::<S>(options)?))
}

fn options<S: Sampler + Serialize>(sampler: &dyn Sampler) -> Option<Value> {
    let sampler = (sampler as &dyn Any).downcast_ref::<S>()?;
    // The text has the shortest form of each number. A `Value` would have the digits of an f64.
    serde_json::from_str(&serde_json::to_string(sampler).ok()?).ok()
}
