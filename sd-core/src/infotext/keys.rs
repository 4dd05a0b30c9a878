//! The keys of an infotext: one table for the documentation, for reading and for writing.

/// Defines a constant for each key, and the table of the keys and their meanings.
macro_rules! keys {
    ($($group:literal { $($($name:ident = $key:literal),+: $text:literal;)* })*) => {
        $($($(pub(crate) const $name: &str = $key;)+)*)*

        /// The keys that are written, in groups. Each group has a heading, and keys with what they
        /// mean, in Markdown.
        pub(crate) const KEYS: &[(&str, &[(&[&str], &str)])] = &[
            $(($group, &[$((&[$($key),+], $text),)*]),)*
        ];
    };
}

keys! {
    "Sampling:" {
        STEPS = "Steps":
            "the number of steps.";
        SAMPLER = "Sampler":
            "the [title](sd_schedulers::samplers::SamplerRow::title) of the sampler. In files of \
             WebUI, names are read by [`from_webui`](sd_schedulers::from_webui), which includes \
             aliases (`k_dpmpp_2m`) and old names that contain the ladder (`DPM++ 2M Karras`). \
             The section [below](#other-programs) has the names of other programs. A sampler \
             without a name has no `Sampler`.";
        SCHEDULE_TYPE = "Schedule type":
            "WebUI's label if it means exactly this ladder, and otherwise the ladder's \
             [name](sd_schedulers::Ladder::NAMED).";
        CFG_SCALE = "CFG scale":
            "the guidance scale, as the shortest number that is read back as the same `f32`. In \
             files of WebUI, the scale of \"DDIM CFG++\" is divided by 12.5: in WebUI it is \
             `0.0..=12.5`, and in this crate `0.0..=1.0`.";
        SEED = "Seed":
            "the seed of this picture, whatever its place in a request.";
        SIZE = "Size":
            "width and height, such as `512x768`. When it is read, sides are rounded down to \
             multiples of 8, which is a difference.";
        VARIATION_SEED = "Variation seed", VARIATION_SEED_STRENGTH = "Variation seed strength":
            "the variation of this picture, if its strength is not 0.";
        SEED_RESIZE_FROM = "Seed resize from":
            "width and height, such as `512x768`.";
        CLIP_SKIP = "Clip skip":
            "the clip skip, if it is not the model's own. If the key is absent, the model's own \
             is used. [`Pipeline::reproduction`](crate::Pipeline::reproduction) drops a clip skip \
             that WebUI did not apply.";
        ENSD = "ENSD":
            "the number added to the seed for the noise between steps, if it is not 0.";
        RNG = "RNG":
            "the noise: `CPU` is torch's generator, `NV` is WebUI's generator of that name, and \
             `GPU` is torch's generator on a CUDA device. Without `SD noise`, `GPU` is read as \
             `NV`, which is a difference. In files of WebUI a missing `RNG` means `GPU`.";
        SGM_NOISE_MULTIPLIER = "SGM noise multiplier":
            "`True` if the first x is the noise times sqrt(σ² + 1) instead of σ. It is read for \
             samplers of WebUI.";
        SD_LADDER = "SD ladder":
            "a ladder without a name, as JSON.";
        SD_SAMPLER = "SD sampler":
            "`webui` for a sampler with WebUI's conventions, which `Sampler` names; `model` for \
             the model's default sampler if that has no name; otherwise the sampler and its \
             options as JSON, or the `Debug` output of a sampler that is not this crate's, which \
             is a difference.";
        SD_GUIDANCE = "SD guidance":
            "guidance with more than a scale, as JSON. A custom guidance is written as its \
             `Debug` output, without `CFG scale`, and is a difference.";
        SD_NOISE = "SD noise":
            "noise that `RNG` does not name, or not completely, as its name or as JSON.";
        SD_SLERP = "SD slerp":
            "the interpolation of a variation, if it is not WebUI's.";
    }
    "The model:" {
        MODEL_HASH = "Model hash":
            "the first 10 digits of the SHA-256 of the UNet's file. It is not read, as only the \
             caller can compare it.";
        MODEL = "Model":
            "the name of the model. It is not read.";
        LORA_HASHES = "Lora hashes":
            "the LoRAs that were merged into the model, and then the LoRAs that the prompts call, \
             each with the first 12 digits of WebUI's hash of its file. In files of WebUI, they \
             are the LoRAs that the prompt calls. \
             [`Pipeline::reproduction`](crate::Pipeline::reproduction) finds called LoRAs by their \
             hashes. Without a pipeline, each of them is a difference.";
        SD_LORAS = "SD loras":
            "the name and the weights of each merged LoRA, for the text encoders and for the \
             UNet, as JSON. [`Pipeline::reproduction`](crate::Pipeline::reproduction) compares \
             them with the pipeline's own, and other LoRAs are a difference.";
        REFINER = "Refiner",
        REFINER_SWITCH_AT = "Refiner switch at",
        REFINER_SWITCH_BY_SAMPLING_STEPS = "Refiner switch by sampling steps":
            "the name of the refiner that made the last steps, the share of the run before it, \
             and `True` if that is a share of the steps. They are read as [`Request::refiner`].";
        TILING = "Tiling":
            "`True` if the picture is seamless on both axes. \
             [`Infotext::seamless`](crate::Infotext::seamless) reads it, and \
             [`Pipeline::reproduction`](crate::Pipeline::reproduction) compares it with the \
             pipeline's denoiser. Without a pipeline, it is a difference.";
        SD_TILING = "SD tiling":
            "`x` or `y` if the picture is seamless on only this axis. It is read like `Tiling`.";
        SD_DECODER = "SD decoder":
            "how the picture was decoded if not exactly by the model's autoencoder, such as `fast \
             tiles`: [`LatentCodec::approximation`](crate::LatentCodec::approximation). It is a \
             difference, unless the pipeline's codec makes the same approximation.";
        SD_PRECISION = "SD precision":
            "the number format that the denoiser computed in, such as `int8`, if it is not f32: \
             [`Denoiser::precision`](crate::Denoiser::precision). It is a difference, unless the \
             pipeline's denoiser has the same.";
    }
    "The prompts and other inputs:" {
        SD_SIZES = "SD sizes",
        SD_NEGATIVE_SIZES = "SD negative sizes",
        SD_AESTHETIC_SCORES = "SD aesthetic scores":
            "the size conditioning of an SDXL model, if it is not the default, as JSON.";
        SD_PROMPT_2 = "SD prompt 2", SD_NEGATIVE_PROMPT_2 = "SD negative prompt 2":
            "the texts for the second text encoder, if they differ.";
        SD_PROMPT_OPTIONS = "SD prompt options":
            "how prompts are read, if that is not the default, as JSON. In files of WebUI, \
             `Emphasis` and `Pad conds` are read instead, and \
             [`Cleanup::Ftfy`](sd_text::Cleanup::Ftfy) is used.";
        TI_HASHES = "TI hashes":
            "the textual inversions that the prompts name, each with the first 12 digits of its \
             file's SHA-256. They have to be loaded, which is a difference.";
        SD_PROMPT_EMBEDDING = "SD prompt embedding",
        SD_NEGATIVE_PROMPT_EMBEDDING = "SD negative prompt embedding":
            "the shape of an embedding that was supplied instead of a text, a difference.";
        SD_INITIAL_NOISE = "SD initial noise":
            "the shape of the initial noise that was supplied, a difference.";
        SD_TILES = "SD tiles":
            "the windows in which a large picture was drawn, [`Request::tiles`], as JSON.";
        SD_SHORTCUTS = "SD shortcuts":
            "what the run left out to be faster, [`Request::shortcuts`], as JSON.";
        SD_NETWORK_CALLS = "SD network calls":
            "the number of calls of the network that a run with shortcuts made, and the number \
             that it would have made without them, such as `24 of 40`. Calls that reused deep \
             features follow, as in `40 of 40, 26 of them shallow`. It is not read.";
        DENOISING_STRENGTH = "Denoising strength":
            "the strength of a run that started from a picture, or else of a second pass.";
        HIRES_UPSCALE = "Hires upscale", HIRES_RESIZE = "Hires resize":
            "the factor or the size of a second pass, [`Request::hires`]. In files of WebUI, a \
             side of 0 is computed from the other side and the shape of the first pass. If \
             `First pass size`, which is only read, is present, `Size` is the size of the \
             finished picture.";
        HIRES_UPSCALER = "Hires upscaler":
            "how the second pass enlarges, by WebUI's name, or by the name of a \
             [network](crate::Upscaler::Network). \
             [`Pipeline::reproduction`](crate::Pipeline::reproduction) finds networks by their \
             names; if the pipeline has none of that name, Lanczos is used. Without a pipeline, a \
             network is a difference.";
        HIRES_STEPS = "Hires steps", HIRES_SAMPLER = "Hires sampler",
        HIRES_SCHEDULE_TYPE = "Hires schedule type", HIRES_PROMPT = "Hires prompt",
        HIRES_NEGATIVE_PROMPT = "Hires negative prompt", HIRES_CFG_SCALE = "Hires CFG Scale":
            "the values of the second pass that differ from the first pass.";
        SD_UPSCALE_OVERLAP = "SD upscale overlap", SD_UPSCALE_UPSCALER = "SD upscale upscaler":
            "a picture that was redrawn in tiles, \
             [`Pipeline::upscale_by_tiles`](crate::Pipeline::upscale_by_tiles): the overlap of the \
             tiles in pixels, and how the picture was enlarged before. They are a difference.";
        POSTPROCESS_UPSCALE_BY = "Postprocess upscale by",
        POSTPROCESS_UPSCALER = "Postprocess upscaler":
            "a finished picture that was enlarged: the factor, and the name of the upscaler. \
             [`Infotext::enlarged`](crate::Infotext::enlarged) adds them. They are a difference.";
        SD_HIRES = "SD hires":
            "all options of the second pass as JSON, or `custom` if they cannot be written.";
        IMAGE_CFG_SCALE = "Image CFG scale":
            "the guidance scale for the picture, [`Request::image_guidance`], of an \
             instruct-pix2pix model.";
        MASK_BLUR = "Mask blur":
            "the blur of the mask of a run that started from a picture, in pixels.";
        MASKED_CONTENT = "Masked content":
            "`fill`, `latent noise` or `latent nothing`: what the run found inside the mask. \
             Absent if it found the picture.";
        INPAINT_AREA = "Inpaint area", MASKED_AREA_PADDING = "Masked area padding":
            "`Only masked` and the padding of [`Mask::only_masked`](crate::Mask::only_masked).";
        NOISE_MULTIPLIER = "Noise multiplier":
            "the factor of the noise, if it is not 1.";
        MASK_MODE = "Mask mode":
            "only read: `Inpaint not masked` in files of WebUI, if the black part of the mask was redrawn.";
        SD_START = "SD start":
            "the size of the picture that the run started from, and the options of \
             [`Start`](crate::Start) as JSON. The caller has to supply the picture, which is a \
             difference. \
             [`Infotext::start`](crate::Infotext::start) joins it with the options.";
        CONTROL_NET = "ControlNet":
            "for each picture that steered the run, `ControlNet 0`, `ControlNet 1` and so on: the \
             network and the options as sd-webui-controlnet writes them. The caller has to supply \
             the picture, which is a difference. \
             [`Infotext::control`](crate::Infotext::control) joins it with the options.";
        SD_CONTROLS = "SD controls":
            "the options of all pictures that steered the run, as JSON. In files of this crate, it \
             is read instead of the keys before.";
        SD_BESIDE = "SD beside":
            "the shape of the extra channels beside the latents, a difference.";
        SD_PROMPT = "SD prompt", SD_NEGATIVE_PROMPT = "SD negative prompt":
            "the text, if this format would not return it byte for byte.";
    }
    "The file:" {
        BATCH_SIZE = "Batch size", BATCH_POS = "Batch pos":
            "for a batch of more than one, its size and the position of this picture in it, from \
             0. A difference.";
        VERSION = "Version":
            "`sd-onnx` and the version of this crate. It shows that the file is this crate's.";
    }
}

#[cfg(test)]
mod tests {
    use super::KEYS;

    /// `keys.md` is a part of the documentation of the module `infotext`.
    #[test]
    fn the_documentation_lists_every_key() {
        let mut expected = String::new();
        for (heading, keys) in KEYS {
            expected += &format!("{heading}\n\n");
            for (names, text) in *keys {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                let names = match names.split_last() {
                    Some((last, [])) => last.clone(),
                    Some((last, others)) => format!("{} and {last}", others.join(", ")),
                    None => String::new(),
                };
                expected += &format!("- {names}: {text}\n");
            }
            expected += "\n";
        }
        let written = include_str!("keys.md");
        assert!(
            written == expected,
            "src/infotext/keys.md is to be\n{expected}"
        );
    }
}
