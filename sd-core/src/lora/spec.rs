//! The arguments of a LoRA in a prompt, such as `<lora:name:0.8>`.

use sd_text::{Network, outside::printable};

use super::{
    LoraBlocks, LoraCall,
    blocks::{self, PRESETS},
    number::int,
    weight::Weight,
};

/// A LoRA as a prompt calls it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    /// The name of the LoRA's file, or its alias.
    pub name: String,
    text_encoder: Weight,
    unet: Weight,
    rank: Option<usize>,
    blocks: Option<LoraBlocks>,
    steps: Steps,
}

/// The reason why a LoRA in a prompt cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// What can be used instead.
    pub expected: String,
    /// What was found in the call, such as "weight `x`". Empty if the whole call is meant.
    pub found: String,
}

impl Wrong {
    pub fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Returns whether an extra network is a LoRA. WebUI has two names for the kind.
pub(crate) fn is_lora(network: &Network) -> bool {
    matches!(&*network.name, "lora" | "lyco")
}

impl Spec {
    /// Parses the arguments as WebUI and the extensions do.
    pub fn parse(arguments: &[String]) -> Result<Self, Wrong> {
        let arguments = Arguments::split(arguments)?;
        let Arguments { positional, .. } = arguments;
        let (third, in_third) = match positional[2] {
            Some(text) if blocks::is_blocks(text) => (None, Some(text)),
            third => (third, None),
        };
        if let (Some(_), Some(text)) = (arguments.lbw, in_third) {
            return Err(Wrong::new("weights of blocks once", described("", text)));
        }
        // A value without a key is checked even if the value with the key counts.
        let weight = |text: Option<&str>| text.map(parse_weight).transpose();
        let rank = |text: Option<&str>| text.map(parse_rank).transpose();
        let (first, second) = (weight(positional[1])?, weight(third)?);
        let (rank_of_fourth, te, unet) = (
            rank(positional[3])?,
            weight(arguments.te)?,
            weight(arguments.unet)?,
        );
        let text_encoder = te.or(first).unwrap_or(Weight::Constant(1.0));
        let blocks = arguments.lbw.or(in_third).map(parse_blocks).transpose()?;
        Ok(Self {
            name: positional[0].unwrap_or_default().to_owned(),
            unet: unet.or(second).unwrap_or_else(|| text_encoder.clone()),
            text_encoder,
            rank: rank(arguments.rank)?.or(rank_of_fourth),
            blocks: blocks.filter(|blocks| blocks.0 != [1.0; 26]),
            steps: Steps::parse(&arguments)?,
        })
    }

    /// Returns the call of the LoRA `index` in a run of `steps` steps.
    pub fn call(&self, index: usize, steps: usize) -> LoraCall {
        let unet = |step| match self.steps.is_on(step) {
            true => self.unet.at(step, steps),
            false => 0.0,
        };
        let mut weights: Vec<_> = (0..steps.max(1)).map(unet).collect();
        if weights.iter().all(|weight| *weight == weights[0]) {
            weights.truncate(1);
        }
        LoraCall {
            rank: self.rank,
            blocks: self.blocks,
            ..LoraCall::new(index, self.text_encoder.at(0, steps), weights)
        }
    }
}

/// The arguments of a call, which are not parsed yet.
#[derive(Default)]
struct Arguments<'a> {
    /// The name and up to three values.
    positional: [Option<&'a str>; 4],
    te: Option<&'a str>,
    unet: Option<&'a str>,
    rank: Option<&'a str>,
    lbw: Option<&'a str>,
    start: Option<&'a str>,
    stop: Option<&'a str>,
    step: Option<&'a str>,
}

impl<'a> Arguments<'a> {
    /// Sorts the arguments as WebUI's `ExtraNetworkParams` does: an argument with one `=` is named.
    fn split(arguments: &'a [String]) -> Result<Self, Wrong> {
        let mut split = Self::default();
        let mut count = 0;
        for argument in arguments {
            let parts: Vec<_> = argument.splitn(3, '=').collect();
            if let [key, value] = parts[..] {
                split.set(key, value)?;
                continue;
            }
            let Some(place) = split.positional.get_mut(count) else {
                let expected = "a name and at most three values without `=`";
                return Err(Wrong::new(expected, described("", argument)));
            };
            *place = Some(argument);
            count += 1;
        }
        match count {
            0 => Err(Wrong::new("the name of a LoRA", "no name")),
            _ => Ok(split),
        }
    }

    fn set(&mut self, key: &str, value: &'a str) -> Result<(), Wrong> {
        let place = match key {
            "te" => &mut self.te,
            "unet" => &mut self.unet,
            "dyn" => &mut self.rank,
            // The extension has both names.
            "lbw" | "w" => &mut self.lbw,
            "start" => &mut self.start,
            "stop" => &mut self.stop,
            "step" => &mut self.step,
            "hr" | "hrte" | "hrunet" => {
                let expected = "weights for a single pass, as a high-resolution pass is not \
                                supported";
                return Err(Wrong::new(expected, described("argument ", key)));
            }
            _ => {
                let expected = "te, unet, dyn, lbw, start, stop or step before `=`";
                return Err(Wrong::new(expected, described("argument ", key)));
            }
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(Wrong::new(
                "each argument once",
                described("a second ", key),
            )),
        }
    }
}

fn described(what: &str, text: &str) -> String {
    format!("{what}`{}`", printable(text))
}

fn parse_weight(text: &str) -> Result<Weight, Wrong> {
    Weight::parse(text).ok_or_else(|| {
        let expected = "a finite number such as 0.8, or numbers at steps such as 0@0,1@0.5";
        Wrong::new(expected, described("weight ", text))
    })
}

fn parse_rank(text: &str) -> Result<usize, Wrong> {
    let rank = int(text).and_then(|rank| usize::try_from(rank).ok());
    rank.filter(|&rank| rank > 0).ok_or_else(|| {
        let expected = "a whole number of at least 1";
        Wrong::new(expected, described("dyn ", text))
    })
}

fn parse_blocks(text: &str) -> Result<LoraBlocks, Wrong> {
    blocks::parse(text).ok_or_else(|| {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        let expected = format!("{}, or 12, 17, 20 or 26 finite numbers", names.join(", "));
        Wrong::new(expected, described("lbw ", text))
    })
}

/// The steps in which a LoRA is on, as `denoiser_callback` of the extension
/// `sd-webui-lora-block-weight` switches it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Steps {
    /// The step, counted from 0, that switches the LoRA on.
    start: u64,
    /// The step that switches it off.
    stop: Option<u64>,
}

impl Steps {
    fn parse(arguments: &Arguments<'_>) -> Result<Self, Wrong> {
        let Arguments {
            start, stop, step, ..
        } = *arguments;
        if let (Some(text), true) = (step, start.or(stop).is_some()) {
            return Err(Wrong::new(
                "either step, or start and stop",
                described("step ", text),
            ));
        }
        if let Some(text) = step {
            let numbers: Option<Vec<_>> = text.split('-').map(int).collect();
            let Some([start, stop]) = numbers.as_deref() else {
                let expected = "two whole numbers such as 3-10";
                return Err(Wrong::new(expected, described("step ", text)));
            };
            return Ok(Self {
                start: reached(*start),
                stop: Some(reached(*stop)),
            });
        }
        let number = |what: &str, text: &str| {
            let number = int(text).map(reached);
            number.ok_or_else(|| Wrong::new("a whole number", described(what, text)))
        };
        Ok(Self {
            start: start.map_or(Ok(0), |text| number("start ", text))?,
            stop: stop.map(|text| number("stop ", text)).transpose()?,
        })
    }

    /// Returns whether the LoRA is on in a step, counted from 0.
    fn is_on(self, step: usize) -> bool {
        // A stop before the start has passed when the LoRA is switched on.
        let stopped = |stop| stop >= self.start && step as u64 >= stop;
        step as u64 >= self.start && !self.stop.is_some_and(stopped)
    }
}

/// Returns the step, counted from 0, in which the extension reaches a number.
fn reached(number: i64) -> u64 {
    // The extension adds 2 to the number of the step that WebUI counted last, which is still 0 in
    // the second step.
    let number = u64::try_from(number).unwrap_or(0);
    if number > 1 { number } else { 0 }
}
