//! What is wrong with the controls of a request.

use ndarray::ArcArray;
use sd_schedulers::names::near;
use sd_text::outside::{list, printable};

use crate::{
    Control, ControlInputs, ControlKind, ControlMode, ControlPicture, ImageSize, Inputs,
    MAX_CONTROLS, Preprocessor, Problem, Request, Resize, StartFrom,
};

/// Returns the problems of the controls. `size` is the size of the pictures that are drawn.
pub(super) fn control_problems(
    inputs: &Inputs,
    request: &Request,
    size: ImageSize,
    max_pixels: u64,
) -> Vec<Problem> {
    let controls = &request.controls;
    if controls.len() > MAX_CONTROLS {
        let expected = format!("at most {MAX_CONTROLS}");
        return vec![Problem::new("controls", expected, controls.len())];
    }
    let mut problems = Vec::new();
    for (i, control) in controls.iter().enumerate() {
        let mut add = |field: &str, expected: String, found: String| {
            let field = format!("controls[{i}]{field}");
            problems.push(Problem::new(field, expected, found));
        };
        check_numbers(control, &mut add);
        let Some(of) = inputs.controls.iter().find(|of| of.name == control.network) else {
            add(
                ".network",
                known(inputs, &control.network),
                quoted(&control.network),
            );
            continue;
        };
        let before = &controls[..i];
        let again = before.iter().any(|other| other.network == control.network);
        if of.kind == ControlKind::ImagePrompt && again {
            let expected = "another network, because a request can use an IP-Adapter once";
            add(".network", expected.to_owned(), quoted(&control.network));
        }
        check_mode(control, of, &mut add);
        check_preprocessor(control, of, &mut add);
        check_picture(control, of, request, size, max_pixels, &mut add);
    }
    problems
}

/// Adds the problem of a field of a control, with what was expected and found.
type Add<'a> = &'a mut dyn FnMut(&str, String, String);

fn quoted(name: &str) -> String {
    format!("\"{}\"", printable(name))
}

/// Returns which name of a network was expected.
fn known(inputs: &Inputs, name: &str) -> String {
    let names = inputs.controls.iter().map(|of| of.name.as_str());
    match near(name, names) {
        names if names.is_empty() => {
            "nothing, as the pipeline has no control networks (`Builder::control`)".to_owned()
        }
        names => format!("the name of a control network, such as {}", list(names)),
    }
}

fn check_numbers(control: &Control, add: Add<'_>) {
    let Control {
        weight, start, end, ..
    } = *control;
    if !weight.is_finite() {
        add(".weight", "a finite number".to_owned(), weight.to_string());
    }
    if !(0.0..=1.0).contains(&start) {
        add(".start", "0 to 1".to_owned(), start.to_string());
    } else if !(start..=1.0).contains(&end) {
        add(".end", format!("{start}, the start, to 1"), end.to_string());
    }
    if control.resize == Resize::Latent {
        let expected = "stretch, crop or fill, because a control picture is not encoded";
        add(".resize", expected.to_owned(), "latent".to_owned());
    }
}

fn check_preprocessor(control: &Control, of: &ControlInputs, add: Add<'_>) {
    if control.preprocessor == Preprocessor::None {
        return;
    }
    let is_pixels = matches!(control.picture, ControlPicture::Pixels(_));
    if of.kind == ControlKind::ImagePrompt || !is_pixels {
        let expected = match of.kind {
            ControlKind::ImagePrompt => "none, as this is an IP-Adapter",
            _ => "none, as the control has no picture in pixels",
        };
        let found = control.preprocessor.webui_name();
        add(".preprocessor", expected.to_owned(), found.to_owned());
    }
    if let Err(problems) = control.preprocessor.check() {
        for Problem {
            field,
            expected,
            found,
            ..
        } in problems.0
        {
            add(&format!(".preprocessor.{field}"), expected, found);
        }
    }
}

fn check_mode(control: &Control, of: &ControlInputs, add: Add<'_>) {
    let expected = match (of.kind, control.mode) {
        (_, ControlMode::Balanced) | (ControlKind::ControlNet, _) => return,
        (ControlKind::Adapter, ControlMode::Prompt | ControlMode::Control) => return,
        (ControlKind::Adapter, _) => "balanced, prompt or control, as this is a T2I-Adapter",
        (ControlKind::ImagePrompt, _) => "balanced, as this is an IP-Adapter",
    };
    let found = format!("{:?}", control.mode).to_lowercase();
    add(".mode", expected.to_owned(), found);
}

fn check_picture(
    control: &Control,
    of: &ControlInputs,
    request: &Request,
    size: ImageSize,
    max_pixels: u64,
    add: Add<'_>,
) {
    let is_prompt = of.kind == ControlKind::ImagePrompt;
    let [width, height] = [size.width(), size.height()].map(|side| side as usize);
    if !is_prompt && (width % of.multiple != 0 || height % of.multiple != 0) {
        let network = printable(&of.name);
        let multiple = of.multiple;
        let expected = format!("a size in multiples of {multiple} pixels, which `{network}` needs");
        add(
            ".picture",
            expected,
            format!("in {size}, the size of the request"),
        );
    }
    if of.kind == ControlKind::Adapter && request.tiles.is_some() {
        let expected = "a ControlNet or an IP-Adapter, because T2I-Adapters see the whole picture \
                        and not windows";
        add(".network", expected.to_owned(), quoted(&of.name));
    }
    let is_values = matches!(control.picture, ControlPicture::Values(_));
    if !is_prompt && !is_values && ![1, 3].contains(&of.channels) {
        let expected = format!(
            "values of {} channels, which the network reads",
            of.channels
        );
        add(".picture", expected, "a picture in pixels".to_owned());
        return;
    }
    match &control.picture {
        ControlPicture::Pixels(pixels) => {
            let (height, width, channels) = pixels.dim();
            let count = (height as u64).saturating_mul(width as u64);
            if channels != 3 || count == 0 {
                let expected = "a picture of shape [height, width, 3], at least 1×1";
                add(".picture", expected.to_owned(), shape_of(pixels));
            } else if count > max_pixels || width.max(height) > u32::MAX as usize {
                let expected = format!("at most {max_pixels} pixels");
                add(".picture", expected, format!("{width}×{height}"));
            }
        }
        ControlPicture::Values(_) | ControlPicture::Start if is_prompt => {
            let expected = "a picture in pixels, as this is an IP-Adapter";
            add(".picture", expected.to_owned(), "another".to_owned());
        }
        ControlPicture::Values(values) => {
            let expected = (of.channels, height, width);
            if values.dim() != expected {
                let expected = format!("values of shape {expected:?}");
                add(".picture", expected, shape_of(values));
            } else if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                add(".picture", "finite numbers".to_owned(), value.to_string());
            }
        }
        ControlPicture::Start => {
            let start = request.start.as_ref();
            let resize = start.map(|start| start.resize);
            if !start.is_some_and(|start| matches!(start.from, StartFrom::Pixels(_))) {
                let expected = "a picture, as the request does not start from one";
                add(".picture", expected.to_owned(), "\"start\"".to_owned());
            } else if resize == Some(Resize::Latent) {
                let expected = "a picture, as the start is resized after it is encoded";
                add(".picture", expected.to_owned(), "\"start\"".to_owned());
            }
        }
    }
}

fn shape_of<T, D: ndarray::Dimension>(array: &ArcArray<T, D>) -> String {
    format!("an array of shape {:?}", array.shape())
}
