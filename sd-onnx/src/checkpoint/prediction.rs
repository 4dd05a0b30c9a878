//! Determines what the network predicts, and the noise schedule that it was trained with.
//!
//! The weights show neither. The evidence is used in this order: the user's setting, marker
//! tensors, a `.yaml` file beside the file, the header's metadata, and for Stable Diffusion 2 a
//! statistic of one tensor, as in ComfyUI. Later evidence that disagrees becomes a warning.

mod schedule;
mod yaml;

use sd_schedulers::Prediction;
use sd_text::outside::printable;

use self::yaml::Yaml;
use super::{Family, File, Problem, unet::Unet, vae::Latents};

/// The kind of prediction of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predicts {
    /// The noise.
    Epsilon,
    /// The velocity (Salimans and Ho 2022, arXiv 2202.00512).
    V,
    /// The noise, with EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364), as in
    /// Playground 2.5.
    Edm,
    /// The velocity, with EDM's preconditioning, as in CosXL.
    EdmV,
}

impl Predicts {
    /// Returns the variant for a scheduler's prediction type, or `None` if no file is marked with
    /// it.
    pub fn of(prediction: Prediction) -> Option<Self> {
        match prediction {
            Prediction::Epsilon => Some(Self::Epsilon),
            Prediction::V => Some(Self::V),
            Prediction::Edm { v: false, .. } => Some(Self::Edm),
            Prediction::Edm { v: true, .. } => Some(Self::EdmV),
            _ => None,
        }
    }

    /// Returns the name for a message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::V => "v-prediction",
            Self::Edm => "epsilon with EDM's preconditioning",
            Self::EdmV => "v-prediction with EDM's preconditioning",
        }
    }

    fn is_v(self) -> bool {
        matches!(self, Self::V | Self::EdmV)
    }
}

/// Tensors that mark the kind of prediction. They are not weights.
const MARKS: [&str; 6] = [
    "edm_mean",
    "edm_std",
    "edm_vpred.sigma_max",
    "edm_vpred.sigma_min",
    "v_pred",
    "ztsnr",
];

pub(super) fn is_mark(name: &str) -> bool {
    MARKS.contains(&name)
}

/// Words that identify distilled models, which need another sampler (see [`schedule`]), and their
/// usual spellings.
const DISTILLED: [(&str, &str); 4] = [
    ("turbo", "Turbo"),
    ("lightning", "Lightning"),
    ("sdxs", "SDXS"),
    ("dmd2", "DMD2"),
];

/// The standard deviation of Stable Diffusion 2's marker tensor above which the model predicts v.
const STATISTIC: f64 = 0.09;

/// The smallest and the largest sigma of CosXL, where its tensors do not give them.
const COSXL_SIGMAS: [f64; 2] = [0.002, 120.0];

/// The findings about a file's prediction and noise schedule.
#[derive(Debug)]
pub(super) struct Evidence {
    pub predicts: Predicts,
    /// The reason for the kind of prediction, worded to follow it in a message.
    pub because: String,
    /// Whether the last training timestep is pure noise (Lin et al. 2023, arXiv 2305.08891).
    zero_snr: bool,
    /// The smallest and the largest sigma of CosXL.
    sigmas: [f64; 2],
    /// The first and the last beta, from a `.yaml` file, or `None` if they are Stable Diffusion's.
    betas: Option<[f64; 2]>,
    /// The autoencoder's scaling factor, from a `.yaml` file.
    pub scale_factor: Option<f64>,
    /// The kind of distillation: its word in names, and its usual spelling.
    distilled: Option<(&'static str, &'static str)>,
    /// Width and height of the training pictures in pixels, from the header.
    resolution: Option<[usize; 2]>,
}

/// A piece of evidence for a kind of prediction.
struct Claim {
    predicts: Predicts,
    because: String,
    /// Whether the evidence also determines the preconditioning.
    is_exact: bool,
}

impl Evidence {
    pub fn of(
        file: &File<'_>,
        unet: Option<&Unet>,
        family: Option<Family>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Problem> {
        let yaml = file.yaml.map(Yaml::read).unwrap_or_default();
        let mut claims = claims(file, &yaml, warnings);
        if let Some(unet) = unet.filter(|_| family == Some(Family::Sd2)) {
            claims.extend(by_statistic(file, unet)?);
        }
        let mut claims = claims.into_iter();
        let (predicts, because) = match claims.next() {
            None => {
                let because = "because nothing in the file says otherwise".to_owned();
                (Predicts::Epsilon, because)
            }
            Some(first) => {
                let other = |claim: &Claim| match first.is_exact {
                    true => claim.predicts != first.predicts,
                    false => claim.predicts.is_v() != first.predicts.is_v(),
                };
                warnings.extend(claims.filter(other).map(|claim| {
                    format!(
                        "{} ({}), but {} ({}): {} is used",
                        first.because,
                        first.predicts.name(),
                        claim.because,
                        claim.predicts.name(),
                        first.predicts.name()
                    )
                }));
                (first.predicts, format!("because {}", first.because))
            }
        };
        Ok(Self {
            predicts,
            because,
            zero_snr: zero_snr(file, predicts, warnings),
            sigmas: match predicts {
                Predicts::EdmV => sigmas(file)?,
                _ => COSXL_SIGMAS,
            },
            betas: yaml.betas,
            scale_factor: yaml.scale_factor,
            distilled: distilled(file),
            resolution: resolution(file),
        })
    }

    /// Returns the kind of distillation in its usual spelling.
    pub fn distilled_name(&self) -> Option<&'static str> {
        self.distilled.map(|(_, name)| name)
    }

    /// Returns the mean and standard deviation of each latent channel, which Playground 2.5 stores.
    pub fn latents(&self, file: &File<'_>) -> Result<Option<Latents>, Problem> {
        if self.predicts != Predicts::Edm || !file.shapes.contains_key("edm_mean") {
            return Ok(None);
        }
        let [mean, std] = ["edm_mean", "edm_std"].map(|name| {
            let values = (file.values)(name)?;
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(values),
                false => Err(wrong(name, "finite numbers", "NaN or infinity")),
            }
        });
        let (mean, std) = (mean?, std?);
        match std.iter().all(|&std| std > 0.0) {
            true => Ok(Some(Latents { mean, std })),
            false => Err(wrong("edm_std", "numbers above 0", "numbers of 0 or below")),
        }
    }
}

fn wrong(tensor: &str, expected: &str, found: impl Into<String>) -> Problem {
    Problem::Value {
        tensor: tensor.to_owned(),
        expected: expected.to_owned(),
        found: found.into(),
    }
}

/// Collects the evidence except the statistic, the most trusted first.
fn claims(file: &File<'_>, yaml: &Yaml, warnings: &mut Vec<String>) -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut claim = |predicts, because: &str, is_exact| {
        claims.push(Claim {
            predicts,
            because: because.to_owned(),
            is_exact,
        });
    };
    if let Some(predicts) = file.predicts {
        claim(predicts, "the caller says so", true);
    }
    let has = |name| file.shapes.contains_key(name);
    if has("edm_mean") && has("edm_std") {
        let because = "the file has the tensors `edm_mean` and `edm_std`";
        claim(Predicts::Edm, because, false);
    }
    if has("edm_vpred.sigma_max") {
        let because = "the file has the tensor `edm_vpred.sigma_max`";
        claim(Predicts::EdmV, because, false);
    }
    if has("v_pred") {
        claim(Predicts::V, "the file has the tensor `v_pred`", false);
    }
    if let &Some((predicts, ref key)) = &yaml.predicts {
        claim(
            predicts,
            &format!("the .yaml beside the file has {key}"),
            false,
        );
    }
    for key in ["modelspec.prediction_type", "modelspec.predict_key"] {
        let Some(value) = file.metadata.get(key).filter(|value| !value.is_empty()) else {
            continue;
        };
        let because = format!("the file's header has `{key}` {}", printable(value));
        match value.to_ascii_lowercase().as_str() {
            "v" | "v_prediction" | "v-prediction" => claim(Predicts::V, &because, false),
            "epsilon" | "eps" => claim(Predicts::Epsilon, &because, false),
            _ => warnings.push(format!("{because}, an unknown value, which is ignored")),
        }
    }
    claims.extend(kohya_claim(file, warnings));
    claims
}

/// Returns the evidence of `ss_v_parameterization`, which kohya's trainer writes into the header.
fn kohya_claim(file: &File<'_>, warnings: &mut Vec<String>) -> Option<Claim> {
    let key = "ss_v_parameterization";
    let because = |value: &str| format!("the file's header has `{key}` {value}");
    let value = file.metadata.get(key)?.to_ascii_lowercase();
    let (predicts, because) = match value.trim_matches('"') {
        "true" | "1" => (Predicts::V, because("True")),
        "false" | "0" | "none" | "" => (Predicts::Epsilon, because("False")),
        _ => {
            let because = because(printable(value).as_str());
            warnings.push(format!("{because}, an unknown value, which is ignored"));
            return None;
        }
    };
    Some(Claim {
        predicts,
        because,
        is_exact: false,
    })
}

/// Evaluates ComfyUI's statistic for Stable Diffusion 2, which has no marks: the population
/// standard deviation of one norm's biases. Inpainting models are not covered, because they predict
/// epsilon.
fn by_statistic(file: &File<'_>, unet: &Unet) -> Result<Option<Claim>, Problem> {
    let Some(name) = unet.statistic().filter(|_| unet.channels()[0] == 4) else {
        return Ok(None);
    };
    let values = (file.values)(name)?;
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    if !deviation.is_finite() {
        return Err(wrong(name, "finite numbers", "NaN or infinity"));
    }
    let (predicts, than) = match deviation > STATISTIC {
        true => (Predicts::V, "more"),
        false => (Predicts::Epsilon, "no more"),
    };
    Ok(Some(Claim {
        predicts,
        because: format!(
            "the biases of `{}` have the standard deviation {deviation:.3}, {than} than {STATISTIC}",
            printable(name)
        ),
        is_exact: false,
    }))
}

fn zero_snr(file: &File<'_>, predicts: Predicts, warnings: &mut Vec<String>) -> bool {
    let key = "ss_zero_terminal_snr";
    let said = file.metadata.get(key);
    let because = if file.shapes.contains_key("ztsnr") {
        "the file has the tensor `ztsnr`".to_owned()
    } else if said.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        format!("the file's header has `{key}` True")
    } else {
        return false;
    };
    if predicts != Predicts::V {
        warnings.push(format!(
            "{because}, which applies only to v-prediction and is ignored: the model predicts {}",
            predicts.name()
        ));
    }
    predicts == Predicts::V
}

/// Returns the smallest and the largest sigma that CosXL's tensors give.
fn sigmas(file: &File<'_>) -> Result<[f64; 2], Problem> {
    let names = ["edm_vpred.sigma_min", "edm_vpred.sigma_max"];
    let mut sigmas = COSXL_SIGMAS;
    for (sigma, name) in sigmas.iter_mut().zip(names) {
        if !file.shapes.contains_key(name) {
            continue;
        }
        *sigma = match (file.values)(name)?[..] {
            // Parsing the shortest decimal form of the f32 keeps 0.002 at 0.002.
            [value] if value.is_finite() && value > 0.0 => {
                value.to_string().parse().unwrap_or(f64::from(value))
            }
            ref other => {
                let found = match other {
                    [value] => format!("the value {value}"),
                    other => format!("{} values", other.len()),
                };
                return Err(wrong(name, "one number above 0", found));
            }
        };
    }
    if sigmas[0] >= sigmas[1] {
        let expected = format!("more than the smallest sigma, {}", sigmas[0]);
        let found = format!("the value {}", sigmas[1]);
        return Err(wrong(names[1], &expected, found));
    }
    Ok(sigmas)
}

/// Finds a word that identifies a distilled model, in the file's name or in its header's title or
/// architecture.
fn distilled(file: &File<'_>) -> Option<(&'static str, &'static str)> {
    let title = file.metadata.get("modelspec.title").map(String::as_str);
    let architecture = file.metadata.get("modelspec.architecture");
    let texts = [Some(file.name), title, architecture.map(String::as_str)];
    texts.into_iter().flatten().find_map(|text| {
        let text = text.to_ascii_lowercase();
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words.find_map(|word| DISTILLED.into_iter().find(|(known, _)| *known == word))
    })
}

/// Returns width and height of the training pictures, in pixels, from a `modelspec.resolution` such
/// as `1024x1024`.
fn resolution(file: &File<'_>) -> Option<[usize; 2]> {
    let text = file.metadata.get("modelspec.resolution")?;
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| {
        let side = text.trim().parse().ok()?;
        (side % 64 == 0 && (256..=2048).contains(&side)).then_some(side)
    };
    Some([side(width)?, side(height)?])
}
