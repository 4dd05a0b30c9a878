use serde::{Deserialize, Serialize};

/// How many steps of a ladder an image-to-image run of a given strength makes. Each program has its
/// own rule.
///
/// ```
/// # use std::sync::Arc;
/// use sd_schedulers::{
///     Ladder, NoiseSchedule, SchedulerConfig, ladders::{Conventions, StrengthRule},
/// };
///
/// let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
/// let (whole, first) = StrengthRule::Diffusers.part(20, 0.75);
/// let rungs = Ladder::karras().rungs(&schedule, whole, &Conventions::default())?;
/// let rungs = rungs.starting_at(first)?;
/// assert_eq!(rungs.steps(), 15);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// With serde it is a name in kebab case, such as `"webui-exact"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StrengthRule {
    /// `min(int(N · strength), N)` steps: diffusers' pipelines for Stable Diffusion 1.x, 2.x and
    /// XL. The default.
    #[default]
    Diffusers,
    /// `N · strength` steps, rounded up: diffusers' pipelines for Stable Diffusion 3 and FLUX.
    DiffusersFlow,
    /// `t_enc + 1` steps, where `t_enc = int(min(strength, 0.999) · N)`: WebUI.
    #[serde(rename = "webui")]
    WebUi,
    /// N steps of a longer ladder with `N / min(strength, 0.999)` steps: WebUI with the option to
    /// make exactly as many steps as the slider says.
    #[serde(rename = "webui-exact")]
    WebUiExact,
    /// N steps of a longer ladder with `N / strength` steps: ComfyUI's `denoise`.
    #[serde(rename = "comfyui")]
    ComfyUi,
}

impl StrengthRule {
    /// Returns the number of steps of the whole ladder, and its first rung to run.
    ///
    /// Pass the first rung to [`Rungs::starting_at`](crate::Rungs::starting_at), which refuses a
    /// part without rungs.
    ///
    /// `strength` lies in `0.0..=1.0`. NaN counts as 0, and a value outside counts as the nearer
    /// end.
    pub fn part(self, steps: usize, strength: f32) -> (usize, usize) {
        let strength = decimal(strength);
        let strength = if strength > 0.0 {
            strength.min(1.0)
        } else {
            0.0
        };
        let count = steps as f64;
        // A cast truncates, as Python's int() does.
        let longer = |strength: f64| ((count / strength) as usize).max(steps);
        match self {
            Self::Diffusers => (steps, steps - ((count * strength) as usize).min(steps)),
            Self::DiffusersFlow => (steps, (count - (count * strength).min(count)) as usize),
            Self::WebUi => {
                let encoded = (strength.min(0.999) * count) as usize;
                (steps, steps.saturating_sub(encoded + 1))
            }
            Self::WebUiExact | Self::ComfyUi if strength == 0.0 => (steps, steps),
            Self::WebUiExact => {
                let whole = longer(strength.min(0.999));
                (whole, whole - steps)
            }
            Self::ComfyUi if strength > 0.9999 => (steps, 0),
            Self::ComfyUi => {
                let whole = longer(strength);
                (whole, whole - steps)
            }
        }
    }
}

/// Returns the decimal number that a float32 is written as: 0.7 rather than 0.699999988, so that 10
/// times it is 7 as in Python.
pub(crate) fn decimal(number: f32) -> f64 {
    let shortest = number.to_string().parse();
    shortest.unwrap_or_else(|_| number.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are the programs' own formulas, worked out by hand.
    #[test]
    fn parts() {
        use StrengthRule::{ComfyUi, Diffusers, DiffusersFlow, WebUi, WebUiExact};
        let cases = [
            (Diffusers, 20, 0.5, (20, 10)),
            (Diffusers, 10, 0.35, (10, 7)),
            (Diffusers, 10, 0.7, (10, 3)),
            (Diffusers, 10, 1.0, (10, 0)),
            (Diffusers, 10, 0.05, (10, 10)),
            (Diffusers, 10, f32::NAN, (10, 10)),
            (DiffusersFlow, 10, 0.35, (10, 6)),
            (WebUi, 20, 0.5, (20, 9)),
            (WebUi, 20, 1.0, (20, 0)),
            (WebUi, 20, 0.0, (20, 19)),
            (WebUiExact, 20, 0.5, (40, 20)),
            (WebUiExact, 20, 1.0, (20, 0)),
            (ComfyUi, 20, 0.5, (40, 20)),
            (ComfyUi, 20, 0.3, (66, 46)),
            (ComfyUi, 20, 1.0, (20, 0)),
            (ComfyUi, 20, 0.0, (20, 20)),
        ];
        for (rule, steps, strength, expected) in cases {
            let found = rule.part(steps, strength);
            assert_eq!(found, expected, "{rule:?} {steps} {strength}");
        }
    }
}
