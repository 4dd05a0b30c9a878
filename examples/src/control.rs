//! The command-line options for pictures that steer a run.

use std::path::{Path, PathBuf};

use clap::Args;
use sd_onnx::{
    Builder, Control, ControlMode, ControlPicture, Infotext, Preprocessor, Resize, control_name,
};

use crate::{
    Failure,
    start::{named, read, tell_clear},
};

/// The options that choose control networks and their pictures.
#[derive(Debug, Clone, Args)]
pub struct ControlOptions {
    /// Control network, its picture, weight and share of the steps, such as
    /// canny.safetensors:edges.png:0.8:0-0.5. The network is a ControlNet, T2I-Adapter or
    /// IP-Adapter: a file or a diffusers folder. May be repeated. canny@photo.png makes the control
    /// picture from a photo. Numbers need quotation marks in a shell: "canny(50,150)@photo.png".
    /// Other names are threshold, blur_gaussian, tile_resample, invert, recolor_luminance and
    /// recolor_intensity. The word start stands for --image, with a hole where --mask is white
    /// [default weight: 1, default steps: 0-1]
    #[arg(long, value_name = "PATH:PICTURE[:WEIGHT[:FROM-TO]]", value_parser = spec)]
    pub control: Vec<ControlSpec>,
    /// What wins where a control picture and the prompt disagree, for all controls: balanced,
    /// prompt, control, or for ControlNets only guess (a control picture without a prompt)
    /// [default: balanced]
    #[arg(long, value_name = "MODE", requires = "control", value_parser = named::<ControlMode>)]
    pub control_mode: Option<ControlMode>,
    /// How all control pictures are fitted to another size: stretch, crop or fill [default:
    /// stretch]
    #[arg(long, value_name = "HOW", requires = "control", value_parser = named::<Resize>)]
    pub control_resize: Option<Resize>,
    /// CLIP vision model of IP-Adapters [default: the folder image_encoder that fits, beside the
    /// adapter, in the folder above, or there in models or sdxl_models]
    #[arg(long, value_name = "PATH", requires = "control")]
    pub image_encoder: Option<PathBuf>,
}

/// A control network and its picture, as the command line has them.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSpec {
    network: PathBuf,
    picture: Given,
    weight: Option<f32>,
    during: Option<[f32; 2]>,
}

#[derive(Debug, Clone, PartialEq)]
enum Given {
    File {
        path: PathBuf,
        /// `None` if the command line has none.
        preprocessor: Option<Preprocessor>,
    },
    /// The picture of `--image`.
    Start,
}

/// Parses a control network, its picture and its numbers.
fn spec(text: &str) -> Result<ControlSpec, String> {
    let mut parts = parts(text);
    let during = match parts.len() {
        4.. => {
            let last = parts.pop().unwrap_or_default();
            Some(share(&last)?)
        }
        _ => None,
    };
    let weight = match parts.len() {
        3.. => {
            let weight = parts.pop().unwrap_or_default();
            let number = weight
                .parse::<f32>()
                .ok()
                .filter(|number| number.is_finite());
            let expected = || format!("\"{weight}\" is no weight, expected a finite number");
            Some(number.ok_or_else(expected)?)
        }
        _ => None,
    };
    let [network, picture] = &parts[..] else {
        return Err("expected a control network and a picture, such as \
                    canny.safetensors:edges.png"
            .to_owned());
    };
    if network.is_empty() || picture.is_empty() {
        return Err("expected a path before and after the colon".to_owned());
    }
    Ok(ControlSpec {
        network: network.into(),
        picture: given(picture)?,
        weight,
        during,
    })
}

/// Splits at colons, but not behind the letter of a drive.
fn parts(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split(':') {
        match parts.last_mut() {
            Some(drive) if cfg!(windows) && is_drive(drive) && part.starts_with(['\\', '/']) => {
                *drive = format!("{drive}:{part}");
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
}

/// Whether a text ends in the letter of a drive, perhaps behind a preprocessor.
fn is_drive(text: &str) -> bool {
    let path = text.rsplit_once('@').map_or(text, |(_, path)| path);
    path.len() == 1
}

/// Parses a part of the steps, such as `0-0.5`.
fn share(text: &str) -> Result<[f32; 2], String> {
    let wrong = || format!("\"{text}\" is no part of the steps, expected two shares such as 0-0.5");
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    let share = |text: &str| {
        let share = text.trim().parse::<f32>().ok();
        share
            .filter(|share| (0.0..=1.0).contains(share))
            .ok_or_else(wrong)
    };
    let [from, to] = [share(from)?, share(to)?];
    match from <= to {
        true => Ok([from, to]),
        false => Err(wrong()),
    }
}

/// Parses a picture, with a preprocessor before it.
fn given(text: &str) -> Result<Given, String> {
    if text == "start" {
        return Ok(Given::Start);
    }
    let file = |path: &str, preprocessor| Given::File {
        path: path.into(),
        preprocessor,
    };
    let Some((call, path)) = text.split_once('@') else {
        return Ok(file(text, None));
    };
    let (name, numbers) = match call.split_once('(') {
        Some((name, numbers)) => match numbers.strip_suffix(')') {
            Some(numbers) => (name, numbers.split(',').map(str::trim).collect()),
            None => return Err(format!("\"{call}\" has no closing parenthesis")),
        },
        None => (call, Vec::new()),
    };
    let Some(preprocessor) = Preprocessor::from_webui(name) else {
        // The name of a file may contain an @.
        return match Path::new(text).exists() {
            true => Ok(file(text, None)),
            false => Err(format!(
                "\"{name}\" is no preprocessor, expected canny, threshold, blur_gaussian, \
                 tile_resample, invert, recolor_luminance, recolor_intensity or none"
            )),
        };
    };
    let most = preprocessor.thresholds().iter().flatten().count();
    if numbers.len() > most {
        return Err(format!(
            "{name} has {most} parameters, found {}",
            numbers.len()
        ));
    }
    let mut thresholds = [None; 2];
    for (threshold, number) in thresholds.iter_mut().zip(numbers) {
        let parsed = number.parse::<f32>().ok();
        *threshold = Some(parsed.ok_or_else(|| format!("\"{number}\" is no number"))?);
    }
    let set = preprocessor.with_thresholds(thresholds);
    // A value out of range leaves the default, which must not happen unseen.
    let mut taken = set.thresholds().into_iter().zip(thresholds);
    if taken.any(|(set, given)| given.is_some() && set != given) {
        return Err(format!("a parameter of {name} is out of range"));
    }
    match path {
        "" => Err("expected a path after the @".to_owned()),
        "start" => Err("the word start stands for --image as it is, without a preprocessor".into()),
        path => Ok(file(path, Some(set))),
    }
}

impl ControlOptions {
    /// Adds the control networks to a builder.
    pub fn load(&self, mut builder: Builder) -> Builder {
        let mut added: Vec<&Path> = Vec::new();
        for spec in &self.control {
            if !added.contains(&&*spec.network) {
                builder = builder.control(&spec.network);
                added.push(&spec.network);
            }
        }
        match &self.image_encoder {
            Some(path) => builder.image_encoder(path),
            None => builder,
        }
    }

    /// Reads the pictures, and returns the controls. What the options do not say is taken from
    /// `infotext`, the file of `--like`.
    ///
    /// # Errors
    /// [`Failure::Work`] if a picture cannot be read.
    pub fn controls(&self, infotext: Option<&Infotext>) -> Result<Vec<Control>, Failure> {
        let specs = self.control.iter().enumerate();
        specs
            .map(|(i, spec)| self.read(spec, i, infotext))
            .collect()
    }

    fn read(
        &self,
        spec: &ControlSpec,
        index: usize,
        infotext: Option<&Infotext>,
    ) -> Result<Control, Failure> {
        let (picture, preprocessor): (ControlPicture, _) = match &spec.picture {
            Given::Start => (ControlPicture::Start, None),
            Given::File { path, preprocessor } => {
                let (picture, clear) = read(path)?;
                tell_clear(path, clear.as_ref());
                (picture.into(), *preprocessor)
            }
        };
        let name = control_name(&spec.network);
        let of_file = infotext.and_then(|infotext| infotext.control(index, picture.clone()));
        let mut control = of_file.unwrap_or_else(|| Control::new(name.clone(), picture));
        control.network = name;
        if let Some(weight) = spec.weight {
            control.weight = weight;
        }
        if let Some([from, to]) = spec.during {
            control = control.during(from, to);
        }
        if let Some(preprocessor) = preprocessor {
            control.preprocessor = preprocessor;
        } else if spec.picture == Given::Start {
            control.preprocessor = Preprocessor::None;
        }
        if let Some(mode) = self.control_mode {
            control.mode = mode;
        }
        if let Some(resize) = self.control_resize {
            control.resize = resize;
        }
        Ok(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, preprocessor: Option<Preprocessor>) -> Given {
        Given::File {
            path: path.into(),
            preprocessor,
        }
    }

    #[test]
    fn controls_are_parsed() {
        let of = |picture, weight, during| ControlSpec {
            network: "net".into(),
            picture,
            weight,
            during,
        };
        let canny = |low, high| Some(Preprocessor::Canny { low, high });
        for (text, expected) in [
            ("net:a.png", of(file("a.png", None), None, None)),
            ("net:a.png:-0.5", of(file("a.png", None), Some(-0.5), None)),
            (
                "net:start:1:0.25-0.5",
                of(Given::Start, Some(1.0), Some([0.25, 0.5])),
            ),
            (
                "net:canny@a.png:0.8",
                of(file("a.png", canny(100, 200)), Some(0.8), None),
            ),
            (
                "net:canny(50, 150)@a@b.png",
                of(file("a@b.png", canny(50, 150)), None, None),
            ),
        ] {
            assert_eq!(spec(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("net", "expected a control network and a picture"),
            (":a.png", "expected a path before and after"),
            ("net:", "expected a path before and after"),
            ("net:a.png:x", "\"x\" is no weight"),
            ("net:a.png:inf", "\"inf\" is no weight"),
            ("net:a.png:1:0.5", "\"0.5\" is no part of the steps"),
            ("net:a.png:1:0.5-0.2", "is no part of the steps"),
            ("net:a.png:1:0-2", "is no part of the steps"),
            ("a:b:c:1:0-1", "expected a control network and a picture"),
            (
                "net:depth_midas@a.png",
                "\"depth_midas\" is no preprocessor",
            ),
            ("net:canny(1@a.png", "no closing parenthesis"),
            ("net:canny(1,2,3)@a.png", "canny has 2 parameters, found 3"),
            ("net:canny(0)@a.png", "out of range"),
            ("net:canny(x)@a.png", "\"x\" is no number"),
            ("net:canny@", "expected a path after the @"),
            ("net:canny@start", "without a preprocessor"),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
