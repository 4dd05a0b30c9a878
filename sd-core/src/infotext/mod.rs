//! How a picture was made, in the text that AUTOMATIC1111's WebUI writes into its PNG files and reads back.
//!
//! The prompt; then, if there is one, the negative prompt after `Negative prompt: `; then, on the last line, entries of a key
//! and a value:
//! ```text
//! a cute fox girl, watercolour
//! Negative prompt: blurry
//! Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x512, RNG: CPU, …
//! ```
//! A value with a comma, a colon or a line break is a JSON string.
//!
//! # Keys
//! Those of a picture made here, in their order. WebUI knows all that do not begin with `SD `; [`Infotext::request`] says what
//! reading them does.
//!
//! | key | whose | value | read as |
//! |---|---|---|---|
//! | `Steps` | WebUI | whole number | steps |
//! | `Sampler` | WebUI | the [title](sd_schedulers::Row::title) of the sampler's row | scheduler; in a file of WebUI's by [`from_webui`](sd_schedulers::from_webui), also old names with the ladder in them (`DPM++ 2M Karras`) and aliases (`k_dpmpp_2m`); for other programs' names see [below](#other-programs) |
//! | `Schedule type` | WebUI, or a [name](sd_schedulers::Ladder::NAMED) of ours | WebUI's label where that is this very ladder; else our name | ladder |
//! | `CFG scale` | WebUI | the shortest number that is read back as the same `f32` | guidance; of WebUI's "DDIM CFG++" divided by 12.5, as WebUI does: there it is 0 to 12.5, here 0 to 1 |
//! | `Seed` | WebUI | that of this picture, whatever its place in a request | seed |
//! | `Size` | WebUI | `512x768`, width first | size; sides are rounded down to multiples of 8, a difference |
//! | `Model hash` | WebUI | first 10 digits of the SHA-256 of the UNet's file | not read: only the caller can compare it |
//! | `Model` | WebUI | its name | not read |
//! | `Batch size`, `Batch pos` | WebUI | where pictures were made more than one at a time: how many, and which of them, from 0 | a difference |
//! | `Variation seed`, `Variation seed strength` | WebUI | that of this picture; where the strength is not 0 | variation |
//! | `Seed resize from` | WebUI | `512x768`, width first | seed resize |
//! | `Clip skip` | WebUI | where it is not the model's own | clip skip; the model's own where absent. [`Pipeline::reproduction`](crate::Pipeline::reproduction) leaves out one that WebUI did not apply |
//! | `Refiner`, `Refiner switch at`, `Refiner switch by sampling steps` | WebUI | where a refiner made the last steps: its name, the share of the run before, and `True` where that is a share of the steps | [refiner](crate::Request::refiner) |
//! | `ENSD` | WebUI | what is added to the seed for the noise on the way; where that is not 0 | ENSD |
//! | `RNG` | WebUI | `CPU`: torch's generator, `NV`: WebUI's own of that name, `GPU`: torch's on a CUDA device | noise; of a GPU, which is also meant where there is no `RNG`, `NV` stands in, a difference |
//! | `SGM noise multiplier` | WebUI | `True` where the first x is noise times sqrt(σ² + 1), not σ | scheduler, of WebUI's |
//! | `SD ladder` | ours | a ladder that has no name, as its JSON | ladder |
//! | `SD sampler` | ours | `webui`: the `Sampler` is the one that WebUI has under this name, with its conventions; `model`: the model's default, where that has no name; or one with options of its own, as its `Debug`. Without a name there is no `Sampler` | scheduler; one with options of its own is a difference |
//! | `SD guidance` | ours | guidance with more than a scale, as its JSON; or one's own, as its `Debug`, and then there is no `CFG scale` | guidance; one's own is a difference |
//! | `SD noise` | ours | noise that `RNG` does not name or not wholly, as its name or JSON | noise |
//! | `SD slerp` | ours | the way of a variation that is not WebUI's | variation |
//! | `SD sizes`, `SD negative sizes`, `SD aesthetic scores` | ours | what an SDXL model is told of the size, where that is not the default, as their JSON | sizes, scores |
//! | `SD prompt 2`, `SD negative prompt 2` | ours | the texts for the second tower, where they are others | `prompt_2`, `negative_2` |
//! | `SD prompt options` | ours | how prompts are read, where that is not the default, as its JSON | prompt options; those of WebUI's files by `Emphasis` and `Pad conds`, with [`Cleanup::Ftfy`](sd_text::Cleanup::Ftfy) |
//! | `TI hashes` | WebUI | the textual inversions that the prompts name, each with the first 12 digits of its file's SHA-256 | a difference: they have to be loaded |
//! | `SD prompt embedding`, `SD negative prompt embedding` | ours | the shape of what was given for a text | a difference |
//! | `SD beside` | ours | the shape of what stood beside the latents | a difference |
//! | `SD initial noise` | ours | the shape of what was given | a difference |
//! | `SD prompt`, `SD negative prompt` | ours | the text as it was, where this format would not give it back byte for byte | prompts |
//! | `Version` | WebUI | `sd-onnx` and this crate's version | whether the file is ours |
//!
//! # Other programs
//! Several programs write this format with names of their own. These are read:
//! - Nodes of ComfyUI that save pictures: `Sampler: dpmpp_2m_sde_gpu` with `Scheduler: karras`,
//!   `Sampler: euler_karras`, or WebUI's names with `Version: ComfyUI`. The sampler is that of
//!   [`from_comfyui`](sd_schedulers::from_comfyui), the noise torch's on the CPU, and the prompts
//!   are read as [`Syntax::ComfyUi`](sd_text::Syntax::ComfyUi) with
//!   [`Emphasis::Interpolate`](sd_text::Emphasis::Interpolate).
//! - Forge and reForge: samplers that they took from ComfyUI (`DDPM`, `IPNDM`, `DEIS`,
//!   `Euler CFG++`, …), with WebUI's first x.
//! - SD.Next: samplers of diffusers, by their class (`Scheduler: DPMSolverSDEScheduler`) or name
//!   (`DPM SDE`, `TCD`), and the ladder by `Sampler sigma` or `Sampler spacing`. The sampler has
//!   the options of its [row](sd_schedulers::TABLE), a difference.
//! - Fooocus, if it is set to WebUI's format, and Civitai, also as a text of a single line.
//!
//! An unknown schedule type leaves the sampler as it is, and an unknown sampler that begins with a
//! known name (`DPM++ 2M Turbo`) becomes that one. Both are differences.
//!
//! Followed: `create_infotext` and `parse_generation_parameters` of WebUI 1.10.

pub(crate) mod png;
mod read;
mod request;
mod webui;
mod write;

use std::fmt;

use crate::Request;
pub use read::InfotextError;
use read::{COMFYUI, INVOKEAI, MAX_BYTES, NOVELAI, is_space, strip};
pub(crate) use write::of;

/// How a picture was made: see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Infotext {
    /// The prompt, as far as the format can hold it. What a picture was really made from is in [`request`](Self::request).
    pub prompt: String,
    /// The negative prompt, in the same way; empty without one.
    pub negative: String,
    /// Keys and values, in order, the values as they were before quoting. Keys are of letters, digits, `_`, space, `-` and
    /// `/`, at least two of them. WebUI takes fewer than three entries for a part of the prompt.
    pub entries: Vec<(String, String)>,
}

/// What makes a picture again, and how near to it.
#[derive(Debug, Clone)]
pub struct Reproduction {
    /// A request for one picture with everything in it that the infotext tells, and the default where it does not.
    pub request: Request,
    /// Each reason why the picture may come out another, in a sentence; rounding on another machine and another model are
    /// none. Empty for a picture made here, in a batch of one, without values of one's own and textual inversions:
    /// whether those are the same, [`TextualInversion::sha256`](sd_text::TextualInversion::sha256) and `TI hashes` tell.
    ///
    /// At most 50, and then one that counts the others. Each is short and safe to print, whatever
    /// the infotext holds.
    pub differences: Vec<String>,
}

impl Infotext {
    /// Reads an infotext by the rules of WebUI's own parser, with three additions where those lose
    /// something:
    /// - A value that is a JSON object or array is read whole. WebUI ends it at its first comma.
    /// - `Template:` and `Negative Template:` below the entries, as the extension Dynamic Prompts
    ///   writes them, are entries. For WebUI everything is the prompt then.
    /// - A text of a single line, as Civitai has them, is divided at its marks:
    ///   `a fox Negative prompt: bad Steps: 20, Sampler: …`. WebUI finds no prompt there.
    ///
    /// A text without entries is a prompt.
    ///
    /// ```
    /// let infotext = sd_core::Infotext::parse(
    ///     "a fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 42, Model: \"a, b\"",
    /// )?;
    /// assert_eq!((&*infotext.prompt, &*infotext.negative), ("a fox", "blurry"));
    /// assert_eq!(infotext.get("Model"), Some("a, b"));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    ///
    /// # Errors
    /// An [`InfotextError`] when the text is something else than an infotext, when its prompt
    /// cannot be found, or when it is longer than 2 MiB.
    pub fn parse(text: &str) -> Result<Self, InfotextError> {
        read::infotext(text)
    }

    /// The value of a key: of its last entry, as in WebUI.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut entries = self.entries.iter().rev();
        entries
            .find(|(found, _)| found == key)
            .map(|(_, value)| &**value)
    }

    /// Whether another program than this one wrote it.
    pub(crate) fn is_foreign(&self) -> bool {
        let ours = |version: &str| version.starts_with("sd-onnx ");
        !self.get("Version").is_some_and(ours)
    }

    /// The request that makes the picture again, from an infotext of ours or of WebUI, and each reason why it may come out
    /// another: what the request cannot say, what does not exist here, what WebUI computes in another way, values that
    /// cannot be read.
    ///
    /// Size, clip skip, ladder and the like are always set, so that the picture does not hang on a pipeline's defaults.
    /// Whether the model is the same, `get("Model hash")` and [`Pipeline::model`](crate::Pipeline::model) tell.
    ///
    /// ```
    /// use sd_core::{Infotext, schedulers::Ladder};
    ///
    /// let text = "a fox\nSteps: 20, Sampler: Euler Karras, CFG scale: 7, Seed: 42, Size: 512x512";
    /// let infotext = Infotext::parse(text)?;
    /// let again = infotext.request();
    /// assert_eq!((again.request.step_count(), again.request.ladder), (20, Some(Ladder::karras())));
    /// // On that of most GPUs, the seed stands for the same noise at this size.
    /// assert_eq!(again.differences.len(), 1);
    /// assert!(again.differences[0].starts_with("the noise was drawn on a GPU"));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn request(&self) -> Reproduction {
        request::reproduction(self)
    }
}

/// As WebUI writes it.
impl fmt::Display for Infotext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.prompt.clone();
        if !self.negative.is_empty() {
            text += &format!("\n{NEGATIVE} {}", self.negative);
        }
        for (i, (key, value)) in self.entries.iter().enumerate() {
            let before = if i == 0 { "\n" } else { ", " };
            text += &format!("{before}{key}: {}", quote(value));
        }
        f.write_str(strip(&text))
    }
}

/// What `SD sampler` says of a sampler by WebUI's conventions in a file of ours.
const OF_WEBUI: &str = "webui";

/// What `SD sampler` says of a sampler that is the model's default and has no name.
const OF_MODEL: &str = "model";

/// What the lines of the negative prompt begin with.
const NEGATIVE: &str = "Negative prompt:";

/// A value as it is written: as a JSON string where WebUI does so, and where it would not be read back otherwise.
fn quote(value: &str) -> String {
    let webui = value.contains([',', ':', '\n']);
    let lost = value.is_empty()
        || value.starts_with('"')
        || value.starts_with(is_space)
        || value.ends_with(is_space)
        || value.contains(char::is_control);
    if webui || lost {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_read_back() {
        let values = [
            "",
            " ",
            "a",
            " a",
            "a ",
            "a, b: c",
            "\"",
            "\"\"",
            "\"a\"",
            "a\"b",
            "a\\",
            "\\\"",
            "\n",
            "\r",
            "\0",
            "a\tb",
            "512x512",
            "\u{85}",
            "a\u{2028}b",
            "狐, 🦊",
            "{",
            "[1",
            "{}",
            "[\"a\"",
            "{\"a\": [1, 2]}",
        ];
        for value in values {
            let entries = ["Steps", "Key two", "Key three"].map(|key| (key.into(), value.into()));
            let infotext = Infotext {
                entries: entries.into(),
                ..Infotext::default()
            };
            let read = Infotext::parse(&infotext.to_string());
            assert_eq!(read, Ok(infotext), "{value:?}");
        }
    }
}
