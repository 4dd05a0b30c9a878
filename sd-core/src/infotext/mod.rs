//! Infotexts: how a picture was made, in the text format that AUTOMATIC1111's WebUI writes into its
//! files and reads back.
//!
//! The text is the prompt, then the negative prompt after `Negative prompt: ` if there is one, and
//! then a last line of entries, each with a key and a value:
//!
//! ```text
//! a cute fox girl, watercolour
//! Negative prompt: blurry
//! Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, …
//! ```
//!
//! A value with a comma, a colon or a line break is written as a JSON string.
//!
//! # Keys
//! This crate writes these keys, in about this order, unless the entry says that it only reads one.
//! Keys that begin with `SD ` are this crate's own, except for `SD upscale …`. `Hires CFG Scale` is
//! Forge's, and WebUI knows all the others. [`Infotext::request`] reads them back, and reports what
//! it cannot reproduce as a difference.
//!
#![doc = include_str!("keys.md")]
//! # Files
//! [`Infotext::read`] reads PNG, JPEG and WebP files, and
//! [`files::png`](crate::files::png), [`files::jpeg`](crate::files::jpeg) and
//! [`files::webp`](crate::files::webp) write them.
//!
//! - PNG: the text chunk `parameters`, of any length.
//! - JPEG and WebP: the EXIF field `UserComment`, as `UNICODE` and big-endian UTF-16. A JPEG holds
//!   at most 64 KB of EXIF data; a longer text is an error. EXIF data of a PNG is read, too.
//!   Comments in either byte order, in ASCII and in plain UTF-8 are read, and comments in JIS are
//!   refused.
//! - PNG, when nothing else says how it was made: a text hidden in the lowest bits of alpha or of
//!   the colors, as the WebUI extension "stealth pnginfo" and NovelAI write it.
//!
//! # Other programs
//! Several other programs write WebUI's format with different names. These are read:
//!
//! - ComfyUI's nodes that save pictures: `Sampler: dpmpp_2m_sde_gpu` with `Scheduler: karras`,
//!   `Sampler: euler_karras`, or WebUI's names with `Version: ComfyUI`. The sampler is found by
//!   [`from_comfyui`](sd_schedulers::from_comfyui), and the noise is torch's on the CPU. The
//!   prompts are read as [`Syntax::ComfyUi`](sd_text::Syntax::ComfyUi) with
//!   [`Emphasis::Interpolate`](sd_text::Emphasis::Interpolate).
//! - Forge and reForge: the samplers that they took from ComfyUI (`DDPM`, `IPNDM`, `DEIS`,
//!   `Euler CFG++`, …), with WebUI's first x.
//! - SD.Next: samplers of diffusers, by their class (`Scheduler: DPMSolverSDEScheduler`) or name
//!   (`DPM SDE`, `TCD`), and the ladder by `Sampler sigma` or `Sampler spacing`. The sampler has
//!   the options of its [row](sd_schedulers::samplers::TABLE), which is a difference.
//! - Fooocus, if it is set to WebUI's format, and Civitai, including texts on a single line.
//!
//! These programs have formats of their own, which [`Infotext::read`] translates to WebUI's keys.
//! Everything that does not map becomes an entry `Not read`, a sentence that
//! [`Infotext::request`] reports as a difference:
//!
//! - ComfyUI's graph, in the `prompt` chunk of a PNG, or in the EXIF data of a WebP. The settings
//!   are those of the first sampler (`KSampler`, `KSamplerAdvanced`, `SamplerCustom`,
//!   `SamplerCustomAdvanced`), found through its links. A chain of `LoraLoader` nodes becomes
//!   calls such as `<lora:name:0.6:0.8>` in the prompt, which is then translated to
//!   [`Syntax::WebUi`](sd_text::Syntax::WebUi). A second `KSamplerAdvanced` that finishes the run
//!   with another model is the refiner. Each other node that the picture depends on is a
//!   difference: further samplers, upscalers, ControlNets, merged models, nodes that are not known.
//! - InvokeAI's `invokeai_metadata` (version 3 and later), `sd-metadata` (2) and `Dream` (1). The
//!   samplers are those of diffusers, as for SD.Next, and the prompts are read as
//!   [`Syntax::Compel`](sd_text::Syntax::Compel).
//! - NovelAI's `Comment`. `{x}` and `[x]` in its prompts become weights of 1.05 and 1 / 1.05. As in
//!   WebUI, `Clip skip` is 2 and `ENSD` is 31337.
//!
//! An unknown schedule type is replaced by the sampler's usual ladder. An unknown sampler whose
//! name begins with a known name (`DPM++ 2M Turbo`) is replaced by the known sampler. Both are
//! differences.
//!
//! The format follows `create_infotext` and `parse_generation_parameters` of WebUI 1.10.

mod controls;
mod exif;
mod file;
mod hires;
pub(crate) mod jpeg;
pub(crate) mod keys;
pub(crate) mod loras;
pub(crate) mod png;
mod programs;
mod read;
mod request;
mod start;
pub(crate) mod tiling;
mod translated;
pub(crate) mod webp;
mod webui;
mod write;

use std::fmt;

use crate::Request;
pub use controls::CONTROL_NOTE;
pub(crate) use hires::network_note;
pub use read::InfotextError;
use read::{COMFYUI, INVOKEAI, MAX_BYTES, NOVELAI, UNKNOWN, is_space, strip};
pub(crate) use request::{decoder_note, loras_note, precision_note, reproduction};
pub use start::{MASK_NOTE, PICTURE_NOTE};
pub(crate) use webui::name_of;
pub(crate) use write::of;

/// How a picture was made, in WebUI's format. The [module](self) describes the format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Infotext {
    /// The prompt, as far as the format can represent it. [`request`](Self::request) returns the
    /// exact text.
    pub prompt: String,
    /// The negative prompt, as far as the format can represent it. Empty if there is none.
    pub negative: String,
    /// The keys and values, in order. Values are not quoted. A key has at least two characters:
    /// letters, digits, `_`, spaces, `-` and `/`. WebUI reads a last line with fewer than three
    /// entries as a part of the prompt.
    pub entries: Vec<(String, String)>,
}

/// The request that draws a picture again, and how it may differ.
#[derive(Debug, Clone)]
pub struct Reproduction {
    /// A request for one picture, with every value of the infotext. Values that the infotext does
    /// not have are at their defaults.
    pub request: Request,
    /// The reasons why the picture may differ, each in a sentence. Another model and the rounding
    /// of another machine are not listed.
    ///
    /// The list is empty for a picture of this crate that was drawn in a batch of one, without
    /// custom values, LoRAs and textual inversions.
    /// [`Pipeline::reproduction`](crate::Pipeline::reproduction) leaves out the differences for
    /// LoRAs if the pipeline has the same ones. To check that the same textual inversions are
    /// loaded, compare [`TextualInversion::sha256`](sd_text::TextualInversion::sha256) with
    /// `TI hashes`.
    ///
    /// At most 50 reasons are listed, followed by the number of the others. Each is short and safe
    /// to print, whatever the infotext holds.
    pub differences: Vec<String>,
}

impl Infotext {
    /// Reads an infotext by the rules of WebUI's parser, with three additions for texts that WebUI
    /// does not read completely:
    ///
    /// - A value that is a JSON object or array is read as a whole. WebUI ends it at its first
    ///   comma.
    /// - `Template:` and `Negative Template:` below the entries, as the extension Dynamic Prompts
    ///   writes them, are entries. WebUI then reads the whole text as the prompt.
    /// - A text on a single line, as Civitai has them, is divided at its marks:
    ///   `a fox Negative prompt: bad Steps: 20, Sampler: …`. WebUI finds no prompt there.
    ///
    /// A text without entries is a prompt.
    ///
    /// ```
    /// let text = "a fox\nNegative prompt: blurry\n\
    ///             Steps: 20, Sampler: Euler a, Seed: 42, Model: \"a, b\"";
    /// let infotext = sd_core::Infotext::parse(text)?;
    /// assert_eq!((&*infotext.prompt, &*infotext.negative), ("a fox", "blurry"));
    /// assert_eq!(infotext.get("Model"), Some("a, b"));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    ///
    /// # Errors
    /// - [`InfotextError::OtherFormat`] if the text is the metadata of another program.
    /// - [`InfotextError::PromptNotFound`] if the text is a single line, and its prompt cannot be
    ///   found.
    /// - [`InfotextError::TooLong`] if the text is longer than 2 MiB.
    pub fn parse(text: &str) -> Result<Self, InfotextError> {
        read::infotext(text)
    }

    /// Returns the value of a key. If the key occurs several times, the last value counts, as in
    /// WebUI.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut entries = self.entries.iter().rev();
        entries
            .find(|(found, _)| found == key)
            .map(|(_, value)| &**value)
    }

    /// Adds that the finished picture was enlarged by a factor, as WebUI's tab "Extras" does:
    /// `Postprocess upscale by` and `Postprocess upscaler`. If it was enlarged before, the factors
    /// are multiplied, and the new upscaler replaces the earlier one.
    ///
    /// ```
    /// use sd_core::Infotext;
    ///
    /// let mut infotext = Infotext::parse("a fox\nSteps: 20, Seed: 7, Size: 512x512")?;
    /// infotext.enlarged(4.0, "4x-sharp");
    /// assert_eq!(infotext.get("Postprocess upscale by"), Some("4"));
    /// assert_eq!(infotext.get("Postprocess upscaler"), Some("4x-sharp"));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn enlarged(&mut self, factor: f64, upscaler: &str) {
        let known = self.get(keys::POSTPROCESS_UPSCALE_BY);
        let known = known.and_then(|known| known.parse::<f64>().ok());
        let factor = factor * known.filter(|known| known.is_finite()).unwrap_or(1.0);
        let ours = [keys::POSTPROCESS_UPSCALE_BY, keys::POSTPROCESS_UPSCALER];
        self.entries.retain(|(key, _)| !ours.contains(&&**key));
        self.insert([
            (keys::POSTPROCESS_UPSCALE_BY.to_owned(), factor.to_string()),
            (keys::POSTPROCESS_UPSCALER.to_owned(), upscaler.to_owned()),
        ]);
    }

    /// Adds entries before the version, which is the last entry.
    pub(crate) fn insert(&mut self, entries: impl IntoIterator<Item = (String, String)>) {
        let has_version = self
            .entries
            .last()
            .is_some_and(|(key, _)| key == keys::VERSION);
        let end = self.entries.len() - usize::from(has_version);
        self.entries.splice(end..end, entries);
    }

    /// Returns whether another program wrote the infotext.
    pub(crate) fn is_foreign(&self) -> bool {
        let ours = |version: &str| version.starts_with("sd-onnx ");
        !self.get(keys::VERSION).is_some_and(ours)
    }

    /// Returns the request that draws the picture again, and the reasons why the picture may
    /// differ: values that cannot be read, values that a request cannot express, features that this
    /// crate does not have, and computations that differ from WebUI's.
    ///
    /// The request sets the ladder, the clip skip and all values of the infotext, so that the
    /// picture depends as little as possible on a pipeline's defaults. To check that the model is
    /// the same, compare `get("Model hash")` with [`Pipeline::model`](crate::Pipeline::model).
    ///
    /// ```
    /// use sd_core::{Infotext, schedulers::Ladder};
    ///
    /// let text = "a fox\nSteps: 20, Sampler: Euler Karras, CFG scale: 7, Seed: 42, Size: 512x512";
    /// let infotext = Infotext::parse(text)?;
    /// let again = infotext.request();
    /// assert_eq!(again.request.step_count(), 20);
    /// assert_eq!(again.request.ladder, Some(Ladder::karras()));
    /// // On most GPUs, the seed gives the same noise at this size.
    /// assert_eq!(again.differences.len(), 1);
    /// assert!(again.differences[0].starts_with("the noise was drawn on a GPU"));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn request(&self) -> Reproduction {
        reproduction(self, None, false)
    }
}

/// Writes the text as WebUI does.
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

/// The value of `SD sampler` for a sampler with WebUI's conventions.
const OF_WEBUI: &str = "webui";

/// The value of `SD sampler` for the model's default sampler, if it has no name.
const OF_MODEL: &str = "model";

/// The key of a sentence about what was not read in another program's metadata.
const NOT_READ: &str = "Not read";

/// The start of the negative prompt.
const NEGATIVE: &str = "Negative prompt:";

/// Quotes a value as a JSON string if WebUI does so, or if it would not be read back otherwise.
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
