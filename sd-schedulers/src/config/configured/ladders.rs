//! The ladders that the classes make from their keys.

use super::super::{ConfigError, SchedulerConfig};
use super::File;
use crate::ladders::shifted;
use crate::{
    Ladder, NoiseSchedule, Prediction,
    ladders::{FinalSigma, Flow, FlowLevels, ResolutionShift, Shape, Shift, Spacing, Span, Timing},
};

pub(super) const KARRAS: Shape = Shape::Karras { rho: 7.0 };
/// The keys of the shapes. At most one of them may be true.
pub(super) const SHAPES: [(&str, Shape); 3] = [
    ("use_karras_sigmas", KARRAS),
    ("use_exponential_sigmas", Shape::Exponential),
    (
        "use_beta_sigmas",
        Shape::Beta {
            alpha: 0.6,
            beta: 0.6,
        },
    ),
];
const SPACINGS: [(&str, Spacing); 3] = [
    ("linspace", Spacing::Linspace),
    ("leading", Spacing::Leading),
    ("trailing", Spacing::Trailing),
];

impl File<'_> {
    pub(super) fn spacing(&self, default: Spacing) -> Result<Spacing, ConfigError> {
        let spacing = self.keys.one_of("timestep_spacing", &SPACINGS)?;
        Ok(spacing.unwrap_or(default))
    }

    /// Returns the shape that is switched on, and its key.
    fn shape(&self) -> Result<Option<(&'static str, Shape)>, ConfigError> {
        let mut found = None;
        for (key, shape) in SHAPES {
            if self.keys.flag(key, false)? {
                if let Some((first, _)) = found {
                    return Err(self.refuse(key, format!("false with `{first}`")));
                }
                found = Some((key, shape));
            }
        }
        Ok(found)
    }

    /// Returns a span over a spacing or the trained sigmas, with the bounds that the file sets.
    fn span(&self, spacing: Option<Spacing>) -> Result<Span, ConfigError> {
        Ok(Span {
            spacing,
            sigma_min: self.keys.positive("sigma_min")?,
            sigma_max: self.keys.positive("sigma_max")?,
        })
    }

    /// Returns the ladder of the classes that follow k-diffusion. `karras_span` is whether a Karras
    /// ladder uses the keys for the range of sigmas.
    pub(super) fn k_ladder(&self, karras_span: bool) -> Result<Ladder, ConfigError> {
        let spacing = self.spacing(Spacing::Linspace)?;
        Ok(match self.shape()? {
            None => Ladder::Spaced(spacing),
            Some((_, shape)) if shape == KARRAS && !karras_span => Ladder::karras_over(spacing),
            Some((_, shape)) => {
                let over = self.span(Some(spacing))?;
                Ladder::Shaped { shape, over }
            }
        })
    }

    /// Returns the ladder of LCM and TCD, which have no spacing.
    pub(super) fn distilled(&self) -> Result<Ladder, ConfigError> {
        self.infinite_sigma(true)?;
        let most = self.config.num_train_timesteps;
        Ok(Ladder::Timed(Timing::Lcm {
            original_steps: self.count("original_inference_steps", 1..=most, 50)?,
            strength: 1.0,
        }))
    }

    /// Returns the ladder of the DPM-Solver classes and of SA-Solver.
    pub(super) fn dpm_ladder(
        &self,
        spacing: Spacing,
        lu: bool,
        dynamic: bool,
    ) -> Result<Ladder, ConfigError> {
        let ladder = self.shaped_or_flow(spacing, lu, dynamic)?;
        // On other ladders, diffusers ignores `lambda_min_clipped`.
        if let (Ladder::Spaced(_), Some(least)) = (&ladder, self.keys.number("lambda_min_clipped")?)
        {
            let sigma_max = NoiseSchedule::new(self.config)?.sigma_max();
            let lambda = -f64::from(sigma_max).ln();
            if lambda < least {
                let expected = format!("at most {lambda}, so that no timestep is left out");
                return Err(self.refuse("lambda_min_clipped", expected));
            }
        }
        Ok(ladder)
    }

    /// Returns a shaped ladder, a flow ladder or a spacing.
    ///
    /// `lu` is whether [`Shape::Lu`] is switched on. It yields to Karras and takes precedence over
    /// the other shapes. `dynamic` is whether the shift may depend on the picture's size.
    pub(super) fn shaped_or_flow(
        &self,
        spacing: Spacing,
        lu: bool,
        dynamic: bool,
    ) -> Result<Ladder, ConfigError> {
        let shape = match self.shape()? {
            karras @ Some((_, Shape::Karras { .. })) => karras,
            _ if lu => Some(("use_lu_lambdas", Shape::Lu)),
            other => other,
        };
        Ok(match (self.flow_sigmas()?, shape) {
            (true, Some((key, _))) => {
                return Err(self.refuse(key, "false with `use_flow_sigmas`"));
            }
            (true, None) => Ladder::Flow(Flow {
                levels: FlowLevels::Dpm,
                shift: self.dpm_shift(dynamic)?,
                terminal: None,
            }),
            (false, None) => Ladder::Spaced(spacing),
            (false, Some((_, Shape::Lu))) => Ladder::shaped(Shape::Lu),
            (false, Some((_, shape))) => {
                let over = self.span(None)?;
                Ladder::Shaped { shape, over }
            }
        })
    }

    /// Reads `use_flow_sigmas`, which must agree with `flow_prediction`.
    fn flow_sigmas(&self) -> Result<bool, ConfigError> {
        let flow = self.keys.flag("use_flow_sigmas", false)?;
        match (flow, self.is_flow()) {
            (true, false) => {
                let expected = "`flow_prediction` with `use_flow_sigmas`";
                Err(self.refuse("prediction_type", expected))
            }
            (false, true) => {
                let expected = "true with `flow_prediction`";
                Err(self.refuse("use_flow_sigmas", expected))
            }
            _ => Ok(flow),
        }
    }

    fn dpm_shift(&self, dynamic: bool) -> Result<Shift, ConfigError> {
        if !dynamic {
            let factor = self.keys.positive("flow_shift")?;
            return Ok(Shift::By(factor.unwrap_or(1.0)));
        }
        let shift = self.shift("flow_shift")?;
        match shift {
            Shift::Resolution(ResolutionShift { linear: true, .. }) => {
                Err(self.refuse("time_shift_type", "`exponential`"))
            }
            _ => Ok(shift),
        }
    }

    /// Returns the shift by the factor in this key, or by the picture's size.
    fn shift(&self, key: &'static str) -> Result<Shift, ConfigError> {
        let keys = self.keys;
        if !keys.flag("use_dynamic_shifting", false)? {
            return Ok(Shift::By(keys.positive(key)?.unwrap_or(1.0)));
        }
        let default = ResolutionShift::default();
        let types = [("exponential", false), ("linear", true)];
        let linear = keys.one_of("time_shift_type", &types)?;
        let most = usize::MAX;
        Ok(Shift::Resolution(ResolutionShift {
            base_tokens: self.count("base_image_seq_len", 0..=most, default.base_tokens)?,
            base_shift: keys.number("base_shift")?.unwrap_or(default.base_shift),
            max_tokens: self.count("max_image_seq_len", 0..=most, default.max_tokens)?,
            max_shift: keys.number("max_shift")?.unwrap_or(default.max_shift),
            linear: linear.unwrap_or(default.linear),
            ..default
        }))
    }

    /// Reads `shift_terminal`, where 0 means none.
    fn terminal(&self) -> Result<Option<f64>, ConfigError> {
        let part = |value: &serde_json::Value| {
            let number = value.as_f64()?;
            (0.0..1.0).contains(&number).then_some(number)
        };
        let terminal = self
            .keys
            .get("shift_terminal", "a number at least 0 and below 1", part)?;
        Ok(terminal.filter(|&terminal| terminal > 0.0))
    }

    pub(super) fn unipc_ladder(&self) -> Result<Ladder, ConfigError> {
        let (spacing, terminal) = (self.spacing(Spacing::Linspace)?, self.terminal()?);
        if !self.flow_sigmas()? {
            if terminal.is_some() {
                return Err(self.refuse("shift_terminal", "null without `use_flow_sigmas`"));
            }
            return self.shaped_or_flow(spacing, false, true);
        }
        let (levels, shift, terminal) = match self.shape()? {
            None => (FlowLevels::UniPc, self.shift("flow_shift")?, terminal),
            Some((_, shape @ Shape::Karras { .. })) => {
                // diffusers uses the range of the sigmas that the betas would make.
                let diffusion = NoiseSchedule::new(&SchedulerConfig {
                    prediction: Prediction::Epsilon,
                    ..self.config.clone()
                })?;
                let span = self.span(None)?;
                let levels = FlowLevels::Exploding {
                    shape,
                    sigma_min: span.sigma_min.unwrap_or(diffusion.sigma_min().into()),
                    sigma_max: span.sigma_max.unwrap_or(diffusion.sigma_max().into()),
                };
                (levels, Shift::default(), None)
            }
            Some((key, _)) => return Err(self.refuse(key, "false with `use_flow_sigmas`")),
        };
        Ok(Ladder::Flow(Flow {
            levels,
            shift,
            terminal,
        }))
    }

    /// Returns the ladder of the flow matching classes, except Heun's.
    pub(super) fn flow_match(&self) -> Result<Ladder, ConfigError> {
        if self.keys.flag("invert_sigmas", false)? {
            return Err(self.refuse("invert_sigmas", "false"));
        }
        let (shift, terminal) = (self.shift("shift")?, self.terminal()?);
        let Some((key, shape)) = self.shape()? else {
            return Ok(Ladder::Flow(Flow {
                levels: match shift {
                    Shift::By(_) => FlowLevels::ShiftedEnd,
                    _ => FlowLevels::Trained,
                },
                shift,
                terminal,
            }));
        };
        // diffusers takes the ends of the ladder that the shape replaces.
        let span = self.span(None)?;
        let sigma_min = match (span.sigma_min.or(terminal), shift) {
            (Some(sigma_min), _) => sigma_min,
            (None, Shift::By(factor)) => {
                let cleanest = 1.0 / self.config.num_train_timesteps as f64;
                shifted(shifted(cleanest, factor), factor)
            }
            (None, _) => {
                let expected = "false with `use_dynamic_shifting`, which moves its end";
                return Err(self.refuse(key, expected));
            }
        };
        Ok(Ladder::Shaped {
            shape,
            over: Span::between(sigma_min, span.sigma_max.unwrap_or(1.0)),
        })
    }

    pub(super) fn edm_ladder(&self) -> Result<Ladder, ConfigError> {
        let rho = self.keys.positive("rho")?.unwrap_or(7.0);
        let karras = Shape::Karras { rho };
        let shapes = [("karras", karras), ("exponential", Shape::Exponential)];
        let shape = self.keys.one_of("sigma_schedule", &shapes)?;
        Ok(Ladder::shaped(shape.unwrap_or(karras)))
    }

    /// Checks that the smallest sigma of the training is also the smallest of the ladder, because
    /// the DPM-Solver classes end there.
    pub(super) fn same_end(&self, end: FinalSigma, ladder: &Ladder) -> Result<(), ConfigError> {
        match ladder {
            Ladder::Flow(_) if end == FinalSigma::SigmaMin => {
                Err(self.refuse("final_sigmas_type", "`zero` with `use_flow_sigmas`"))
            }
            Ladder::Shaped { over, .. }
                if end == FinalSigma::SigmaMin && over.sigma_min.is_some() =>
            {
                let expected = "null with `final_sigmas_type` `sigma_min`";
                Err(self.refuse("sigma_min", expected))
            }
            _ => Ok(()),
        }
    }
}
