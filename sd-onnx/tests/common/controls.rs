//! The networks and runs of `tests/golden/control.py`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use sd_onnx::{
    Builder, Control, ControlMode, ControlPicture, Mask, Pipeline, PromptOptions, Request,
    SchedulerConfig, Start,
    image::{GrayImage, RgbImage},
    schedulers::from_config,
    text::Syntax,
};
use serde_json::Value;

use crate::common::{Golden, Model, golden, golden_json, replayed, write_family, write_tensors};

/// A folder of `tests/golden/control`, and a copy of its models.
pub struct Controls {
    pub cases: Value,
    pub values: Golden,
    name: String,
    folder: PathBuf,
}

impl Controls {
    /// Writes the model and its control networks to `folder`.
    pub fn write(name: &str, folder: &Path) -> Self {
        let golden_name = format!("control/{name}");
        let cases = fs::read_to_string(golden(&golden_name).join("cases.json")).unwrap();
        // Python writes infinite defaults, which are no JSON.
        let cases: Value = serde_json::from_str(&cases.replace("-Infinity", "null")).unwrap();
        let controls = Self {
            values: Golden::of_shape(&golden_name),
            cases,
            name: golden_name,
            folder: folder.to_path_buf(),
        };
        let base = controls.cases["base"].as_str().unwrap();
        match base.strip_prefix("families/") {
            Some(family) => write_family(family, &controls.model()),
            None => Model::of_shape(base).write(&controls.model()),
        }
        let vision = controls.cases["vision"].as_str().unwrap();
        write_vision(vision, &folder.join("image_encoder"));
        controls
    }

    /// The folder of the model.
    pub fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// Writes a control network, and returns its path. `changes` are changes of its configuration.
    pub fn part(&self, part: &str, changes: &Value) -> PathBuf {
        let recipe = golden_json(&self.name, "weights.json");
        let tensors = replayed(&recipe[part]);
        let config = golden(&self.name).join(format!("{part}.json"));
        if !config.exists() {
            let path = self.folder.join(format!("{part}.safetensors"));
            write_tensors(&path, &tensors, Dtype::F32);
            return path;
        }
        let folder = self.folder.join(part);
        fs::create_dir_all(&folder).unwrap();
        let mut config = golden_json(&self.name, &format!("{part}.json"));
        for (key, value) in changes.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let file = folder.join("diffusion_pytorch_model.safetensors");
        write_tensors(&file, &tensors, Dtype::F32);
        folder
    }

    /// Returns a builder with the control networks of a run.
    pub fn builder(&self, builder: Builder, run: &Value) -> Builder {
        let lists = ["controls", "adapters", "images"].map(|key| run[key].as_array().unwrap());
        let parts = lists.into_iter().flatten();
        parts.fold(builder, |builder, part| {
            builder.control(self.part(part["part"].as_str().unwrap(), &part["changes"]))
        })
    }

    /// Loads the model with the control networks and the scheduler of a run.
    pub fn load(&self, builder: Builder, run: &Value) -> Pipeline {
        let pipeline = self.builder(builder, run).load(self.model());
        let pipeline = pipeline.unwrap_or_else(|error| panic!("{}: {error}", run["name"]));
        let config = SchedulerConfig::from_json(&run["scheduler_config"].to_string()).unwrap();
        let (prompts, denoiser, codec) = (
            pipeline.prompt_encoder().clone(),
            pipeline.denoiser().clone(),
            pipeline.codec().clone(),
        );
        let zeros = self.name == "control/sdxl";
        let builder = Pipeline::builder(prompts, denoiser, codec, config);
        builder.zero_empty_negative(zeros).build().unwrap()
    }

    /// Returns a golden picture.
    pub fn picture(&self, name: &str) -> RgbImage {
        let (width, height, values) = bytes(self.values.tensor(name));
        RgbImage::from_raw(width, height, values).unwrap()
    }

    /// Returns the request of a run.
    pub fn request(&self, run: &Value) -> Request {
        let text = |key: &str| run[key].as_str().unwrap();
        let whole = |key: &str| run[key].as_u64().unwrap();
        let mut scheduler = run["scheduler_config"].clone();
        scheduler["_class_name"] = run["scheduler"].clone();
        let configured = from_config(&scheduler.to_string()).unwrap();
        let mut request = Request::new(text("prompt"))
            .negative(text("negative"))
            .steps(whole("steps") as usize)
            .guidance(number(&run["guidance"]))
            .seed(whole("seed"))
            .size(whole("width") as u32, whole("height") as u32)
            .scheduler(configured.sampler)
            .ladder(configured.ladder)
            .prompt_options(
                PromptOptions::default()
                    .syntax(Syntax::Plain)
                    .same_length(true)
                    .encode_empty(true),
            );
        for control in self.controls(run) {
            request = request.control(control);
        }
        if let Some(picture) = run["picture"].as_str() {
            let mut start = Start::picture(self.picture(picture));
            start = start.strength(number(&run["strength"]));
            if let Some(mask) = run["mask"].as_str() {
                let (width, height, values) = bytes(self.values.tensor(mask));
                let mask = GrayImage::from_raw(width, height, values).unwrap();
                start = start.mask(Mask::new(mask).keep_original(false));
            }
            request = request.start(start);
        }
        request
    }

    /// Returns the controls of a run.
    pub fn controls(&self, run: &Value) -> Vec<Control> {
        let mode = match run["mode"].as_str().unwrap() {
            _ if run["guess_mode"] == true => ControlMode::Guess,
            "balanced" => ControlMode::Balanced,
            "prompt" => ControlMode::Prompt,
            "control" => ControlMode::Control,
            other => panic!("unknown mode {other}"),
        };
        let of = |part: &Value, end: f32| {
            let picture = match part["picture"].as_str() {
                Some(name) => self.picture(name).into(),
                None => ControlPicture::Start,
            };
            let start = part["start"].as_f64().unwrap_or(0.0) as f32;
            Control::new(part["part"].as_str().unwrap(), picture)
                .weight(number(&part["scale"]))
                .during(start, end)
        };
        let list = |key: &str| run[key].as_array().unwrap().iter();
        let controls = list("controls").map(|part| of(part, number(&part["end"])).mode(mode));
        let adapters = list("adapters").map(|part| {
            let end = number(&run["adapter_factor"]);
            of(part, end).mode(mode)
        });
        let images = list("images").map(|part| of(part, 1.0));
        controls.chain(adapters).chain(images).collect()
    }
}

pub fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

/// Returns width, height and values of a golden picture or mask.
fn bytes((shape, values): (Vec<usize>, Vec<f32>)) -> (u32, u32, Vec<u8>) {
    let values = values.iter().map(|&value| value as u8).collect();
    (shape[1] as u32, shape[0] as u32, values)
}

/// Writes a vision model of `tests/golden/vision`.
pub fn write_vision(model: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let config = golden_json(model, "image_encoder.json");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tensors = replayed(&golden_json(model, "weights.json")["image_encoder"]);
    write_tensors(&folder.join("model.safetensors"), &tensors, Dtype::F32);
    let preprocessor = "preprocessor_config.json";
    fs::copy(golden(model).join(preprocessor), folder.join(preprocessor)).unwrap();
}
