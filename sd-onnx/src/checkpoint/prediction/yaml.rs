//! Reads the `.yaml` file beside an old checkpoint, which holds latent diffusion's configuration.
//!
//! Only a few keys matter, and each is on a separate line, so no YAML parser is needed.

use super::Predicts;

/// The findings in a `.yaml` file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Yaml {
    /// The kind of prediction, and the key and value that determine it.
    pub predicts: Option<(Predicts, String)>,
    /// The first and the last beta, if they differ from Stable Diffusion's.
    pub betas: Option<[f64; 2]>,
    /// The autoencoder's scaling factor.
    pub scale_factor: Option<f64>,
}

/// SGM's classes of preconditioning, by the end of the class's name.
const SCALINGS: [(&str, Predicts); 4] = [
    (".VScalingWithEDMcNoise", Predicts::EdmV),
    (".VScaling", Predicts::V),
    (".EpsScaling", Predicts::Epsilon),
    (".EDMScaling", Predicts::Edm),
];

/// Stable Diffusion's first and last beta.
const BETAS: [f64; 2] = [0.00085, 0.012];

impl Yaml {
    pub fn read(text: &str) -> Self {
        let mut found = Self::default();
        let (mut start, mut end) = (None, None);
        for line in text.lines() {
            // The items of a list begin with a dash.
            let line = line.trim().trim_start_matches("- ");
            let line = line.split(" #").next().unwrap_or_default();
            if line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim().trim_matches(['"', '\'']);
            let number = || {
                value
                    .parse::<f64>()
                    .ok()
                    .filter(|n| n.is_finite() && *n > 0.0)
            };
            match key.trim() {
                "parameterization" => {
                    found.predicts = match value {
                        "v" => Some((Predicts::V, "`parameterization` v".into())),
                        "eps" => Some((Predicts::Epsilon, "`parameterization` eps".into())),
                        _ => None,
                    };
                }
                "target" => {
                    let scaling = SCALINGS.iter().find(|(end, _)| value.ends_with(end));
                    if let Some(&(end, predicts)) = scaling {
                        found.predicts = Some((predicts, format!("`{}`", &end[1..])));
                    }
                }
                "linear_start" => start = number(),
                "linear_end" => end = number(),
                "scale_factor" => found.scale_factor = number(),
                _ => {}
            }
        }
        let betas = start.zip(end).map(|(start, end)| [start, end]);
        found.betas = betas.filter(|&betas| betas != BETAS && betas.iter().all(|&b| b < 1.0));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_matter_are_found() {
        // The beginning of `v2-inference-v.yaml`.
        let v = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    \
                 parameterization: \"v\"  # v-prediction\n    linear_start: 0.00085\n    \
                 linear_end: 0.0120\n    scale_factor: 0.18215\n";
        let yaml = Yaml::read(v);
        assert_eq!(
            yaml.predicts,
            Some((Predicts::V, "`parameterization` v".into()))
        );
        assert_eq!((yaml.betas, yaml.scale_factor), (None, Some(0.18215)));
        // Comments are ignored.
        assert_eq!(Yaml::read("# parameterization: \"v\"\n"), Yaml::default());
        let sgm =
            "scaling_config:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling";
        assert_eq!(
            Yaml::read(sgm).predicts,
            Some((Predicts::V, "`VScaling`".into()))
        );
        let betas = Yaml::read("linear_start: 0.001\nlinear_end: 0.02\n").betas;
        assert_eq!(betas, Some([0.001, 0.02]));
        for useless in [
            "linear_start: 1\nlinear_end: 3\n",
            "linear_start: x\nlinear_end: 0.1",
        ] {
            assert_eq!(Yaml::read(useless).betas, None);
        }
    }
}
