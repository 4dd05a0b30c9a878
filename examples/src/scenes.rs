//! Draws the pictures that the small model was trained on.
//!
//! The rules and the sprites are the same as in `train/scenes.py`.

use std::path::Path;

use image::{Rgb, RgbImage, Rgba, RgbaImage, imageops};
use sd_text::outside;
use serde::Deserialize;

use crate::Failure;

/// The longest text file that is read, in bytes. The longest one here has 18 KiB.
pub const MAX_TEXT: u64 = 1 << 20;
/// The largest sheet of sprites that is read, in bytes. The one here has 2 MiB.
const MAX_SHEET: u64 = 64 << 20;

/// The side of a sprite on the sheet, in pixels, as in `concepts.py`.
const SIDE: u32 = 112;
/// The number of sprites in a row of the sheet, as in `concepts.py`.
const COLUMNS: u32 = 14;

/// The sprites and the rules that scenes are drawn from.
#[derive(Debug)]
pub struct Scenes {
    /// The names of the things, in the order of the sprites.
    pub concepts: Vec<String>,
    /// The sprites, with premultiplied alpha.
    sprites: Vec<RgbaImage>,
    rules: Rules,
}

#[derive(Debug, Deserialize)]
struct Rules {
    backgrounds: Vec<(String, [u8; 3])>,
    shade: u8,
    positions: Vec<(String, [f32; 2])>,
    cell: u32,
    sizes: Vec<(String, f32)>,
}

/// A picture of one thing on a plain background. Names are given by their indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scene {
    /// The thing, as an index into [`Scenes::concepts`].
    pub concept: usize,
    /// The background, as an index into [`Scenes::backgrounds`].
    pub background: usize,
    /// The position of the thing, as an index into [`Scenes::positions`].
    pub position: usize,
    /// The width and the height of the picture, in pixels.
    pub size: [u32; 2],
}

/// The parts of a picture that no caption names. The default is no variation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Variety {
    /// The shift of the thing from the middle in cells, across and down: `-1..=1`.
    ///
    /// It has no effect in a direction in which the position is at a border.
    pub place: [i32; 2],
    /// The shade of the background's red, green and blue, as a share of the largest one:
    /// `-1.0..=1.0`.
    pub shade: [f32; 3],
}

impl Scenes {
    /// Reads `concepts.txt`, `scenes.json` and `sprites.png` from a folder.
    ///
    /// # Errors
    /// [`Failure::Work`] if a file cannot be read or is not valid. The text names the file.
    pub fn load(folder: &Path) -> Result<Self, Failure> {
        let [concepts, rules, sheet] =
            ["concepts.txt", "scenes.json", "sprites.png"].map(|name| folder.join(name));
        let text = outside::read_to_string(&concepts, MAX_TEXT).map_err(Failure::at(&concepts))?;
        let named = lines(&text)
            .map(|line| {
                let wrong =
                    || Failure::Work(format!("{}: invalid line {line:?}", concepts.display()));
                called(line).ok_or_else(wrong)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let json = outside::read(&rules, MAX_TEXT).map_err(Failure::at(&rules))?;
        let rules = serde_json::from_slice(&json).map_err(Failure::at(&rules))?;
        let picture = outside::read(&sheet, MAX_SHEET).map_err(Failure::at(&sheet))?;
        let picture = image::load_from_memory(&picture)
            .map_err(Failure::at(&sheet))?
            .into_rgba8();
        let rows = (named.len() as u32).div_ceil(COLUMNS);
        if picture.dimensions() != (COLUMNS * SIDE, rows * SIDE) {
            let (found, expected) = (picture.dimensions(), (COLUMNS * SIDE, rows * SIDE));
            let sheet = sheet.display();
            return Err(Failure::Work(format!(
                "{sheet}: {found:?} pixels, expected {expected:?} for {} concepts",
                named.len()
            )));
        }
        let sprite = |index: u32| {
            let (x, y) = (index % COLUMNS * SIDE, index / COLUMNS * SIDE);
            let mut sprite = imageops::crop_imm(&picture, x, y, SIDE, SIDE).to_image();
            for Rgba([r, g, b, a]) in sprite.pixels_mut() {
                for channel in [r, g, b] {
                    *channel = (u16::from(*channel) * u16::from(*a) / 255) as u8;
                }
            }
            sprite
        };
        Ok(Self {
            sprites: (0..named.len() as u32).map(sprite).collect(),
            concepts: named,
            rules,
        })
    }

    /// Returns the names of the backgrounds.
    pub fn backgrounds(&self) -> impl ExactSizeIterator<Item = &str> {
        self.rules.backgrounds.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the names of the positions.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = &str> {
        self.rules.positions.iter().map(|(name, _)| name.as_str())
    }

    /// Returns copies of a picture, each moved by up to one cell, so that one of them has its thing
    /// in its exact place.
    ///
    /// The training moved things by up to one cell in each direction in which their position is the
    /// middle. This undoes every such move. A position in a corner has one copy, one at the middle
    /// of a side has 3, and the center has 9. The border of the picture is repeated where a move
    /// leaves a gap.
    ///
    /// # Panics
    /// Panics if there is no such position.
    pub fn centered(&self, picture: &RgbImage, position: usize) -> Vec<RgbImage> {
        let [across, down] = self.rules.positions[position].1.map(|part| match part {
            0.5 => -1..=1,
            _ => 0..=0,
        });
        let cell = self.rules.cell as i32;
        let (width, height) = picture.dimensions();
        let moved = |x: i32, y: i32| {
            let from = |at: u32, by: i32, length: u32| {
                (at as i32 + by * cell).clamp(0, length as i32 - 1) as u32
            };
            RgbImage::from_fn(width, height, |column, row| {
                *picture.get_pixel(from(column, x, width), from(row, y, height))
            })
        };
        across
            .flat_map(|x| down.clone().map(move |y| (x, y)))
            .map(|(x, y)| moved(x, y))
            .collect()
    }

    /// Returns the index of the background that a picture shows.
    ///
    /// It is the background whose colour is nearest to the mean of the outermost two pixels on each
    /// side.
    pub fn background(&self, picture: &RgbImage) -> usize {
        let (width, height) = picture.dimensions();
        let border =
            |&(x, y, _): &(u32, u32, &Rgb<u8>)| x < 2 || y < 2 || x + 2 >= width || y + 2 >= height;
        let (mut sum, mut count) = ([0.0; 3], 0.0);
        for (_, _, pixel) in picture.enumerate_pixels().filter(border) {
            for (sum, &channel) in sum.iter_mut().zip(&pixel.0) {
                *sum += f64::from(channel);
            }
            count += 1.0;
        }
        let distance = |colour: &[u8; 3]| -> f64 {
            let differences = sum.iter().zip(colour);
            differences
                .map(|(sum, &channel)| (sum / count - f64::from(channel)).powi(2))
                .sum()
        };
        let distances = self.rules.backgrounds.iter().map(|(_, c)| distance(c));
        nearest(distances)
    }

    /// Draws a scene.
    ///
    /// # Panics
    /// Panics if an index of the scene is too large.
    pub fn draw(&self, scene: Scene, variety: Variety) -> RgbImage {
        let rules = &self.rules;
        let [width, height] = scene.size;
        let across_down = rules.positions[scene.position].1;
        let cells =
            (rules.sizes[0].1 * width.min(height) as f32 / rules.cell as f32).round_ties_even();
        let side = cells as u32 * rules.cell;
        let place = |axis: usize| {
            let free = (scene.size[axis].saturating_sub(side) / rules.cell) as i32;
            let cell = match across_down[axis] {
                0.0 => 0,
                1.0 => free,
                _ => free / 2 + variety.place[axis],
            };
            cell.clamp(0, free) as u32 * rules.cell
        };
        let ground = shaded(rules.backgrounds[scene.background].1, rules.shade, variety);
        let mut picture = RgbImage::from_pixel(width, height, Rgb(ground));
        let sprite = &self.sprites[scene.concept];
        let sprite = imageops::resize(sprite, side, side, imageops::FilterType::CatmullRom);
        let (left, top) = (place(0), place(1));
        for (x, y, &Rgba([r, g, b, a])) in sprite.enumerate_pixels() {
            if let Some(Rgb(pixel)) = picture.get_pixel_mut_checked(left + x, top + y) {
                for (channel, thing) in pixel.iter_mut().zip([r, g, b]) {
                    let behind = u16::from(*channel) * u16::from(255 - a) / 255;
                    *channel = (u16::from(thing) + behind).min(255) as u8;
                }
            }
        }
        picture
    }
}

/// Returns the index of the smallest distance, or 0 if there is none.
pub fn nearest(distances: impl Iterator<Item = f64>) -> usize {
    let indexed = distances.enumerate();
    indexed
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .map_or(0, |(index, _)| index)
}

/// Returns the lines of a text without its comments, which begin with `#`.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

/// Returns the first name that captions use for a concept: "cat" for `🐱 cat face | cat, kitten`.
fn called(line: &str) -> Option<String> {
    let (left, names) = line.split_once(" | ").unwrap_or((line, ""));
    let name = left.split_once(' ')?.1;
    let first = names.split(", ").next().filter(|first| !first.is_empty());
    Some(first.unwrap_or(name).to_owned())
}

fn shaded(colour: [u8; 3], most: u8, variety: Variety) -> [u8; 3] {
    std::array::from_fn(|i| {
        let shade = f32::from(colour[i]) + f32::from(most) * variety.shade[i];
        shade.round().clamp(0.0, 255.0) as u8
    })
}

#[cfg(test)]
mod tests {
    // In a test, a panic is the failure.
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn scenes() -> Scenes {
        Scenes::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("train")).unwrap()
    }

    fn named(scenes: &Scenes, concept: &str, background: &str, position: &str) -> Scene {
        let at = |mut names: Box<dyn Iterator<Item = &str> + '_>, name: &str| {
            names.position(|found| found == name).unwrap()
        };
        Scene {
            concept: at(
                Box::new(scenes.concepts.iter().map(String::as_str)),
                concept,
            ),
            background: at(Box::new(scenes.backgrounds()), background),
            position: at(Box::new(scenes.positions()), position),
            size: [96, 96],
        }
    }

    #[test]
    fn concepts_are_called_as_captions_call_them() {
        let scenes = scenes();
        assert!(scenes.concepts.len() >= 150);
        for name in ["fox", "cat", "orange fruit", "heart"] {
            assert!(scenes.concepts.iter().any(|found| found == name), "{name}");
        }
    }

    #[test]
    fn a_thing_is_where_its_position_says() {
        let scenes = scenes();
        // The mean position of the pixels that are not background.
        let middle = |position, variety| {
            let picture = scenes.draw(named(&scenes, "basketball", "white", position), variety);
            let thing = picture
                .enumerate_pixels()
                .filter(|(_, _, pixel)| pixel[1] < 150);
            let at: Vec<_> = thing
                .map(|(x, y, _)| [f64::from(x), f64::from(y)])
                .collect();
            [0, 1].map(|i| at.iter().map(|at| at[i]).sum::<f64>() / at.len() as f64)
        };
        let none = Variety::default();
        let [x, y] = middle("center", none);
        assert!((x - 47.5).abs() < 2.0 && (y - 47.5).abs() < 6.0, "{x}, {y}");
        let [x, y] = middle("top left", none);
        assert!(x < 36.0 && y < 36.0, "{x}, {y}");
        let [x, y] = middle("right", none);
        assert!(x > 60.0 && (y - 47.5).abs() < 6.0, "{x}, {y}");
        let moved = Variety {
            place: [1, 0],
            ..none
        };
        let [there, here] = [moved, none].map(|variety| middle("center", variety)[0]);
        assert!((there - here - 8.0).abs() < 1e-9, "{here} to {there}");
    }

    #[test]
    fn a_thing_one_cell_away_is_brought_back() {
        let scenes = scenes();
        for (position, count) in [("center", 9), ("left", 3), ("bottom right", 1)] {
            let scene = named(&scenes, "fox", "blue", position);
            let variety = Variety {
                place: [1, -1],
                ..Variety::default()
            };
            let picture = scenes.draw(scene, variety);
            let centered = scenes.centered(&picture, scene.position);
            assert_eq!(centered.len(), count);
            assert!(
                centered.contains(&scenes.draw(scene, Variety::default())),
                "{position}"
            );
        }
    }

    #[test]
    fn a_background_is_told_by_the_border() {
        let scenes = scenes();
        for (index, name) in scenes.backgrounds().enumerate() {
            for shade in [-1.0, 0.0, 1.0] {
                let variety = Variety {
                    shade: [shade; 3],
                    ..Variety::default()
                };
                let picture = scenes.draw(named(&scenes, "fox", name, "bottom right"), variety);
                assert_eq!(scenes.background(&picture), index, "{name}");
            }
        }
    }
}
