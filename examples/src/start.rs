//! The command-line options for pictures as input and for a second pass.

use std::path::{Path, PathBuf};

use clap::Args;
use sd_onnx::{
    Hires, Infotext, Mask, MaskRule, MaskedContent, Request, Resize, Sides, Start, Upscaler, files,
    image::{DynamicImage, RgbImage},
};
use sd_text::outside::printable;
use serde::de::{DeserializeOwned, IntoDeserializer, value};

use crate::{
    Failure,
    options::{finite, positive, sides},
    tell,
};

/// The options that choose a picture to start from.
#[derive(Debug, Clone, Args)]
pub struct StartOptions {
    /// Picture to start from (image to image): PNG, JPEG or WebP. It sets the size, unless --width
    /// and --height or the file of --like do
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How much of --image is redrawn, 0 to 1 [default: 0.75; with --outpaint 0.8]
    #[arg(long, value_name = "SHARE", requires = "image", value_parser = share)]
    pub strength: Option<f32>,
    /// How --image is fitted to another size: stretch, crop, fill or latent [default: stretch]
    #[arg(long, value_name = "HOW", requires = "image", value_parser = named::<Resize>)]
    pub resize: Option<Resize>,
    /// Give the finished picture the colors of --image
    #[arg(long, requires = "image")]
    pub color_correction: bool,
    /// Mask of the size of --image: only its white part is redrawn (inpainting)
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mask: Option<PathBuf>,
    /// Redraw the transparent part of --image
    #[arg(long, requires = "image", conflicts_with = "mask")]
    pub mask_alpha: bool,
    /// Draw beyond the borders of --image (outpainting): the widths in pixels of what is new on the
    /// left, at the top, on the right and at the bottom
    #[arg(
        long,
        value_name = "L,T,R,B",
        requires = "image",
        conflicts_with_all = ["mask", "mask_alpha"],
        value_parser = four_sides
    )]
    pub outpaint: Option<Sides>,
    /// Pixels of --image along the new parts of --outpaint that are redrawn too [default: 0]
    #[arg(long, value_name = "PIXELS", requires = "outpaint")]
    pub overlap: Option<u32>,
    /// Blur of the mask's edge in pixels, 0 to 256 [default: 0]
    #[arg(long, value_name = "PIXELS", requires = "image", value_parser = finite)]
    pub mask_blur: Option<f32>,
    /// How the mask acts: as in diffusers or in webui, or differential, where gray values are
    /// strengths [default: diffusers]
    #[arg(long, value_name = "RULE", requires = "image", value_parser = named::<MaskRule>)]
    pub mask_rule: Option<MaskRule>,
    /// What the run finds inside the mask: original, fill (blurred surroundings), noise or nothing
    /// [default: original; with --outpaint fill]
    #[arg(long, value_name = "WHAT", requires = "image", value_parser = named::<MaskedContent>)]
    pub masked_content: Option<MaskedContent>,
    /// Draw only a region that reaches so many pixels beyond the mask, in the size of --width and
    /// --height, and put it back into the picture
    #[arg(long, value_name = "PIXELS", requires = "image")]
    pub only_masked: Option<u32>,
}

/// The options of a second pass in a larger size.
#[derive(Debug, Clone, Args)]
pub struct HiresOptions {
    /// Redraw the picture in a larger size (WebUI's "Hires. fix"): a factor, such as 2, or a size
    #[arg(long, value_name = "SCALE|WxH", value_parser = hires)]
    pub hires: Option<Hires>,
    /// How much the second pass redraws, 0 to 1 [default: 0.7]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub hires_strength: Option<f32>,
    /// Steps of the second pass [default: as many as in the first pass]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub hires_steps: Option<usize>,
    /// How the picture is enlarged, by WebUI's name: Latent, "Latent (bicubic)", Lanczos …
    /// [default: Latent]
    #[arg(long, value_name = "NAME", value_parser = upscaler)]
    pub hires_upscaler: Option<Upscaler>,
    /// Prompt of the second pass [default: the prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub hires_prompt: Option<String>,
}

/// Parses a value of an enum by the name that it has in JSON.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = T::deserialize(IntoDeserializer::<value::Error>::into_deserializer(text));
    read.map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected 0 to 1".to_owned())
}

fn four_sides(text: &str) -> Result<Sides, String> {
    let numbers: Option<Vec<u32>> = text
        .split(',')
        .map(|side| side.trim().parse().ok())
        .collect();
    match numbers.as_deref() {
        Some(&[left, top, right, bottom]) => Ok(Sides {
            left,
            top,
            right,
            bottom,
        }),
        _ => Err("expected four numbers of pixels: left, top, right and bottom".to_owned()),
    }
}

fn hires(text: &str) -> Result<Hires, String> {
    if let Ok([width, height]) = sides(text) {
        return Ok(Hires::pixels(width, height));
    }
    let scale = text.parse().ok().filter(|scale: &f32| scale.is_finite());
    let scale =
        scale.ok_or_else(|| "expected a factor or a size, such as 2 or 1024x768".to_owned());
    scale.map(Hires::scale)
}

fn upscaler(text: &str) -> Result<Upscaler, String> {
    Upscaler::from_webui(text).ok_or_else(|| {
        let names: Vec<_> = Upscaler::webui_names().collect();
        format!("expected one of: {}", names.join(", "))
    })
}

impl StartOptions {
    /// Reads the picture that the run starts from, and its mask. The options of an infotext count
    /// where no argument replaces them.
    ///
    /// # Errors
    /// [`Failure::Work`] if a picture cannot be read, and [`Failure::Arguments`] if it has no
    /// transparency that could be a mask.
    pub fn start(&self, like: Option<&Infotext>) -> Result<Option<Start>, Failure> {
        let Some(path) = &self.image else {
            return Ok(None);
        };
        let (picture, clear) = read(path)?;
        let mask = match &self.mask {
            _ if self.mask_alpha => match clear {
                Some(clear) => Some(clear),
                None => {
                    let path = printable(path.display());
                    let reason = format!("--mask-alpha: {path} has no transparent part");
                    return Err(Failure::Arguments(reason));
                }
            },
            None => {
                tell_clear(path, clear.as_ref());
                None
            }
            Some(path) => {
                let (mask, clear) = read(path)?;
                tell_clear(path, clear.as_ref());
                Some(Mask::new(DynamicImage::from(mask).to_luma8()))
            }
        };
        let mut start = self.of(picture, mask, like)?;
        if let Some(strength) = self.strength {
            start = start.strength(strength);
        }
        if let Some(resize) = self.resize {
            start = start.resize(resize);
        }
        start.color_correction |= self.color_correction;
        let Some(mask) = &mut start.mask else {
            return match self.mask_option() {
                Some(option) => Err(Failure::Arguments(format!(
                    "{option} needs a mask: --mask, --mask-alpha or --outpaint"
                ))),
                None => Ok(Some(start)),
            };
        };
        mask.blur = self.mask_blur.unwrap_or(mask.blur);
        mask.rule = self.mask_rule.unwrap_or(mask.rule);
        mask.content = self.masked_content.unwrap_or(mask.content);
        mask.only_masked = self.only_masked.or(mask.only_masked);
        Ok(Some(start))
    }

    /// Returns the start from a picture, with the options of an infotext.
    fn of(
        &self,
        picture: RgbImage,
        mask: Option<Mask>,
        like: Option<&Infotext>,
    ) -> Result<Start, Failure> {
        let own = match self.outpaint {
            Some(sides) => {
                let start = Start::outpaint(&picture, sides, self.overlap.unwrap_or(0));
                start.map_err(Failure::arguments)?
            }
            None => {
                let mut start = Start::picture(picture);
                start.mask = mask;
                start
            }
        };
        // The picture is exchanged below, so its size does not matter.
        let blank = RgbImage::new(8, 8);
        Ok(
            match like.and_then(|like| like.start(blank, own.mask.clone())) {
                Some(mut of_file) => {
                    of_file.from = own.from;
                    of_file
                }
                None => own,
            },
        )
    }

    /// Returns an option that has no effect without a mask, if one is given.
    fn mask_option(&self) -> Option<&'static str> {
        let given = [
            (self.mask_blur.is_some(), "--mask-blur"),
            (self.mask_rule.is_some(), "--mask-rule"),
            (self.masked_content.is_some(), "--masked-content"),
            (self.only_masked.is_some(), "--only-masked"),
        ];
        let (_, option) = given.into_iter().find(|(given, _)| *given)?;
        Some(option)
    }

    /// Returns whether there is a mask.
    pub fn has_mask(&self) -> bool {
        self.mask.is_some() || self.mask_alpha || self.outpaint.is_some()
    }
}

impl HiresOptions {
    /// Adds the second pass to a request, or changes the second pass that it has.
    ///
    /// # Errors
    /// [`Failure::Arguments`] if options of a second pass are given without one.
    pub fn apply(&self, mut request: Request) -> Result<Request, Failure> {
        if let Some(hires) = &self.hires {
            match &mut request.hires {
                Some(of_file) => of_file.size = hires.size,
                None => request.hires = Some(hires.clone()),
            }
        }
        let given = [
            (self.hires_strength.is_some(), "--hires-strength"),
            (self.hires_steps.is_some(), "--hires-steps"),
            (self.hires_upscaler.is_some(), "--hires-upscaler"),
            (self.hires_prompt.is_some(), "--hires-prompt"),
        ];
        let Some(hires) = &mut request.hires else {
            return match given.into_iter().find(|(given, _)| *given) {
                Some((_, option)) => Err(Failure::Arguments(format!("{option} needs --hires"))),
                None => Ok(request),
            };
        };
        hires.strength = self.hires_strength.unwrap_or(hires.strength);
        hires.steps = self.hires_steps.or(hires.steps);
        hires.upscaler = self.hires_upscaler.unwrap_or(hires.upscaler);
        if let Some(prompt) = &self.hires_prompt {
            hires.prompt = Some(prompt.into());
        }
        Ok(request)
    }
}

/// Reads a picture, and the mask of its transparent part if it has one.
fn read(path: &Path) -> Result<(RgbImage, Option<Mask>), Failure> {
    let read = files::read_picture(path).map_err(Failure::at(path))?;
    let alpha = read
        .alpha
        .filter(|alpha| alpha.iter().any(|&opacity| opacity < 255));
    Ok((read.rgb, alpha.map(|alpha| Mask::from_alpha(&alpha))))
}

/// Warns that transparency is ignored.
fn tell_clear(path: &Path, clear: Option<&Mask>) {
    if clear.is_some() {
        let path = printable(path.display());
        tell(format_args!("warning: {path}: the transparency is ignored"));
    }
}
