//! The networks and runs of `tests/golden/control.py`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ndarray::{Array4, ArrayD, Axis, Ix2, Ix3, Ix4, Slice};
use safetensors::Dtype;
use sd_onnx::{
    Builder, Call, Control, ControlCall, ControlInput, ControlMode, ControlPicture, Mask, Pipeline,
    PromptOptions, Request, SchedulerConfig, Start, StopToken,
    image::{GrayImage, RgbImage},
    schedulers::from_config,
    text::Syntax,
};
use serde_json::Value;

use super::common::{
    Golden, Model, golden, golden_json, relative_error, replayed, write_family, write_tensors,
};

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

    /// The folder that contains the model and the control networks.
    pub fn folder(&self) -> &Path {
        &self.folder
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

    /// Loads the model with all of its control networks that diffusers' ordinary classes have.
    pub fn load_all(&self, builder: Builder) -> Pipeline {
        let recipe = golden_json(&self.name, "weights.json");
        let parts = recipe.as_object().unwrap().keys();
        let parts = parts.filter(|part| *part != "union");
        let builder = parts.fold(builder, |builder, part| {
            builder.control(self.part(part, &Value::Null))
        });
        builder.load(self.model()).unwrap()
    }

    /// Loads the model with the control networks of a run.
    pub fn load(&self, builder: Builder, run: &Value) -> Pipeline {
        let lists = ["controls", "adapters", "images"].map(|key| run[key].as_array().unwrap());
        let parts = lists.into_iter().flatten();
        let builder = parts.fold(builder, |builder, part| {
            builder.control(self.part(part["part"].as_str().unwrap(), &part["changes"]))
        });
        let pipeline = builder.load(self.model());
        pipeline.unwrap_or_else(|error| panic!("{}: {error}", run["name"]))
    }

    /// Returns a pipeline of the same networks with the scheduler of a run.
    pub fn scheduled(&self, pipeline: &Pipeline, run: &Value) -> Pipeline {
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

/// Compares a call of the UNet in which a ControlNet, a T2I-Adapter and an IP-Adapter act at once,
/// with networks that `builder` loads.
pub fn compare_all_at_once(name: &str, builder: Builder, limit: f64) {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write(name, folder.path());
    let calls = controls.cases["calls"].as_array().unwrap();
    let call = calls.iter().find(|call| call["kind"] == "all").unwrap();
    let parts = ["controlnet", "adapter", "ip"];
    let builder = parts.iter().fold(builder, |builder, part| {
        builder.control(controls.part(part, &Value::Null))
    });
    let denoiser = builder.load_denoiser(controls.model()).unwrap();
    let stop = StopToken::new();
    let of_picture = |key: &str, index: usize| {
        let picture = controls.picture(call["pictures"][index].as_str().unwrap());
        let values = Array4::from_shape_fn(
            (1, 3, picture.height() as usize, picture.width() as usize),
            |(_, c, y, x)| f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0,
        );
        let network = parts.iter().position(|part| *part == key).unwrap();
        let input = ControlInput::Values(values.view());
        denoiser.read_control(network, input, &stop).unwrap()
    };
    let lines = of_picture("controlnet", 0);
    let features = of_picture("adapter", 1);
    let image = controls.picture(call["image"].as_str().unwrap());
    let tokens = denoiser
        .read_control(2, ControlInput::Pixels(&image), &stop)
        .unwrap();
    // The first row is the negative prompt's.
    let tokens = [tokens.negative.unwrap(), tokens.prompt];
    let value = |key: &str| controls.values.find(&format!("call.all.{key}"));
    let (shape, expected) = value("output").unwrap();
    let mut found = Vec::new();
    for (row, tokens) in tokens.iter().enumerate() {
        let of_row = |key: &str| {
            let (shape, values) = value(key)?;
            let all = ArrayD::from_shape_vec(shape, values).unwrap();
            Some(
                all.slice_axis(Axis(0), Slice::from(row..row + 1))
                    .to_owned(),
            )
        };
        let latents = of_row("sample")
            .unwrap()
            .into_dimensionality::<Ix4>()
            .unwrap();
        let context = of_row("context")
            .unwrap()
            .into_dimensionality::<Ix3>()
            .unwrap();
        let pooled = of_row("pooled").map(|it| it.into_dimensionality::<Ix2>().unwrap());
        let sizes = of_row("time_ids").map(|it| it.into_dimensionality::<Ix2>().unwrap());
        let acting = [
            ControlCall::new(0, &lines.prompt, number(&call["control_scale"])),
            ControlCall::new(1, &features.prompt, number(&call["adapter_scale"])),
            ControlCall::new(2, tokens, number(&call["image_scale"])),
        ];
        let timestep = number(&call["timestep"]);
        let mut of_unet = Call::new(latents.view(), timestep, context.view(), &stop);
        of_unet.pooled = pooled.as_ref().map(|pooled| pooled.view());
        of_unet.sizes = sizes.as_ref().map(|sizes| sizes.view());
        let mut output = Array4::zeros((1, shape[1], shape[2], shape[3]));
        denoiser
            .predict(&of_unet.controls(&acting), output.view_mut())
            .unwrap();
        found.extend(output);
    }
    let error = relative_error(&found, &expected);
    println!("{name}: {error:.1e}");
    assert!(
        error <= limit,
        "{name}: {error:.2e}, expected at most {limit:.0e}"
    );
}

/// Compares some runs of a folder with diffusers, on networks that `builder` loads.
pub fn compare_runs(folder: &str, builder: &Builder, names: &[&str], limit: f64) {
    let at = tempfile::tempdir().unwrap();
    let controls = Controls::write(folder, at.path());
    let mut wrong = Vec::new();
    for name in names {
        let runs = controls.cases["runs"].as_array().unwrap();
        let run = runs.iter().find(|run| run["name"] == *name).unwrap();
        let pipeline = controls.scheduled(&controls.load(builder.clone(), run), run);
        let found = pipeline.generate(&controls.request(run)).unwrap();
        let (_, expected) = controls.values.tensor(&format!("run.{name}.latents"));
        let error = relative_error(&found.pictures[0].latents, &expected);
        println!("{folder}, {name}: {error:.1e}");
        if error > limit {
            wrong.push(format!("{folder}, {name}: {error:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "expected at most {limit:.0e}: {wrong:?}");
}
