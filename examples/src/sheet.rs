//! Contact sheets: pictures in a grid, with a title and a label for each column and row.

use std::fmt;

use image::{Pixel, Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// The largest number of pixels in a sheet, 2²⁸. They take 768 MiB.
pub const MAX_PIXELS: u64 = 1 << 28;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([24, 24, 24]);

/// The largest number of letters that a column is widened for. Longer words in a label are broken.
const COLUMN_LETTERS: usize = 12;
/// The largest width of row labels, in letters. Longer labels wrap.
const ROW_LETTERS: usize = 24;
/// The smallest width that a title and a note are wrapped to, in letters.
const TITLE_LETTERS: usize = 40;
const TITLE_LINES: usize = 3;
const COLUMN_LINES: usize = 4;

/// The columns of a sheet, or its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    /// The parameter that the columns or rows differ in. May be empty.
    pub name: String,
    /// The label of each column or row, and the side of its largest picture in pixels: the width
    /// for a column, the height for a row.
    pub labels: Vec<(String, u32)>,
}

/// A contact sheet with dark letters on white.
///
/// Labels wrap. A label that still does not fit is cut off with "…". The letters grow with the
/// width of the columns.
#[derive(Debug, Clone)]
pub struct Sheet {
    canvas: RgbImage,
    /// The left edge and the width of each column.
    columns: Vec<(u32, u32)>,
    /// The top edge and the height of each row.
    rows: Vec<(u32, u32)>,
}

/// The error of a sheet that would have more than [`MAX_PIXELS`] pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// The width in pixels.
    pub width: u64,
    /// The height in pixels.
    pub height: u64,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { width, height } = self;
        write!(
            f,
            "the sheet would be {width}×{height}, expected at most {MAX_PIXELS} pixels"
        )
    }
}

impl std::error::Error for TooLarge {}

impl Sheet {
    /// Creates a sheet with an empty place for each column and row, under a title and a note.
    ///
    /// # Errors
    /// [`TooLarge`] if the sheet would have more than [`MAX_PIXELS`] pixels. Nothing is allocated
    /// for it then.
    pub fn new(title: &str, note: &str, columns: &Axis, rows: &Axis) -> Result<Self, TooLarge> {
        let font = Font::beside(&columns.labels);
        let layout = Layout::new(font, [title, note], columns, rows);
        let Layout { width, height, .. } = layout;
        if width
            .checked_mul(height)
            .is_none_or(|pixels| pixels > MAX_PIXELS)
        {
            return Err(TooLarge { width, height });
        }
        // All places are on the sheet, and its sides are now known to be far below 2³².
        let small = |places: &[(u64, u64)]| -> Vec<(u32, u32)> {
            places
                .iter()
                .map(|&(at, side)| (at as u32, side as u32))
                .collect()
        };
        let mut sheet = Self {
            canvas: RgbImage::from_pixel(width as u32, height as u32, PAPER),
            columns: small(&layout.columns),
            rows: small(&layout.rows),
        };
        sheet.write(font, &layout);
        Ok(sheet)
    }

    /// Writes all texts of the layout.
    fn write(&mut self, font: Font, layout: &Layout) {
        let (margin, gap, line) = (font.margin(), font.gap(), font.height());
        // `left` returns the left edge of a line from its length.
        let mut block = |lines: &[String], top: u32, weight, left: &dyn Fn(u32) -> u32| {
            for (i, text) in lines.iter().enumerate() {
                let (left, top) = (left(font.length(text)), top + i as u32 * line);
                font.draw(&mut self.canvas, left, top, text, weight);
            }
        };
        let (left, labels_bottom) = (layout.left as u32, layout.labels_bottom as u32);
        let above_pictures = |lines: &[String]| labels_bottom - lines.len() as u32 * line;
        let beside_pictures = |length| left - 2 * gap - length;
        let [title, note] = &layout.head;
        block(title, margin, FontWeight::Bold, &|_| margin);
        let below_title = margin + title.len() as u32 * line;
        block(note, below_title, FontWeight::Regular, &|_| margin);
        let name_top = layout.name_top as u32;
        block(&layout.columns_name, name_top, FontWeight::Bold, &|_| left);
        let corner = &layout.rows_name;
        let top = above_pictures(corner);
        block(corner, top, FontWeight::Bold, &beside_pictures);
        for (lines, (at, width)) in layout.column_labels.iter().zip(&self.columns) {
            let centred = |length| at + (width - length) / 2;
            block(lines, above_pictures(lines), FontWeight::Regular, &centred);
        }
        for (lines, (at, height)) in layout.row_labels.iter().zip(&self.rows) {
            let top = at + (height - lines.len() as u32 * line) / 2;
            block(lines, top, FontWeight::Regular, &beside_pictures);
        }
    }

    /// Copies a picture into the middle of its column, at the top of its row.
    ///
    /// The picture is not scaled. If it is larger than its column or row, the rest is cut off.
    ///
    /// # Panics
    /// Panics if the sheet has no such column or row.
    pub fn place(&mut self, column: usize, row: usize, picture: &RgbImage) {
        let ((left, width), (top, height)) = (self.columns[column], self.rows[row]);
        let (w, h) = (picture.width().min(width), picture.height().min(height));
        let picture = imageops::crop_imm(picture, 0, 0, w, h);
        let x = left + (width - w) / 2;
        imageops::replace(&mut self.canvas, &*picture, x.into(), top.into());
    }

    /// Returns the sheet as an image.
    pub fn image(&self) -> &RgbImage {
        &self.canvas
    }
}

/// The texts of a sheet, wrapped to lines, and the places of everything on it, in pixels.
struct Layout {
    /// The lines of the title and of the note.
    head: [Vec<String>; 2],
    columns_name: Vec<String>,
    column_labels: Vec<Vec<String>>,
    rows_name: Vec<String>,
    row_labels: Vec<Vec<String>>,
    /// The left edge of the first column.
    left: u64,
    /// The top edge of the columns' name.
    name_top: u64,
    /// The bottom edge of the columns' labels.
    labels_bottom: u64,
    /// The left edge and the width of each column.
    columns: Vec<(u64, u64)>,
    /// The top edge and the height of each row.
    rows: Vec<(u64, u64)>,
    /// The width of the sheet.
    width: u64,
    /// The height of the sheet.
    height: u64,
}

impl Layout {
    /// Places everything from left to right, wraps the texts to the widths, and then places
    /// everything from top to bottom. `head` is the title and the note.
    fn new(font: Font, head: [&str; 2], columns: &Axis, rows: &Axis) -> Self {
        let [letter, line, margin] = [font.width(), font.height(), font.margin()].map(u64::from);
        let gap = font.gap();
        let row_letters = row_letters(rows);
        let mut left = margin;
        if row_letters > 0 {
            left += row_letters as u64 * letter + 2 * u64::from(gap);
        }
        let (columns_at, right) = places(left, gap, column_widths(font, columns));
        let head_letters = head.map(letters).into_iter().max().unwrap_or(0);
        let head_width = head_letters.min(TITLE_LETTERS) as u64 * letter;
        let width = right.max(margin + head_width) + margin;

        let fit = |pixels: u64| (pixels / letter) as usize;
        let head = head.map(|text| wrapped(text, fit(width - 2 * margin), TITLE_LINES));
        let columns_name = wrapped(&columns.name, fit(right - left), 1);
        let column_labels: Vec<_> = columns
            .labels
            .iter()
            .zip(&columns_at)
            .map(|((label, _), (_, width))| wrapped(label, fit(*width), COLUMN_LINES))
            .collect();
        let rows_name = wrapped(&rows.name, row_letters, COLUMN_LINES);
        let label_lines = column_labels.iter().chain([&rows_name]).map(Vec::len).max();

        let head_lines = head.iter().map(Vec::len).sum::<usize>() as u64;
        let mut name_top = margin + head_lines * line;
        if head_lines > 0 {
            name_top += line / 2;
        }
        let lines_above = columns_name.len() + label_lines.unwrap_or(0);
        let labels_bottom = name_top + lines_above as u64 * line;
        let heights = rows
            .labels
            .iter()
            .map(|(_, side)| (*side).max(font.height()));
        let (rows_at, bottom) = places(labels_bottom + u64::from(gap), gap, heights);
        let row_labels = rows.labels.iter().zip(&rows_at);
        let row_labels = row_labels
            .map(|((label, _), (_, height))| wrapped(label, row_letters, (height / line) as usize));
        Self {
            head,
            columns_name,
            column_labels,
            rows_name,
            row_labels: row_labels.collect(),
            left,
            name_top,
            labels_bottom,
            columns: columns_at,
            rows: rows_at,
            width,
            height: bottom + margin,
        }
    }
}

/// Returns the width of each column: the width of its pictures, or more for the words of its label.
fn column_widths(font: Font, columns: &Axis) -> impl Iterator<Item = u32> {
    columns.labels.iter().map(move |(label, side)| {
        let longest = label.split_whitespace().map(letters).max().unwrap_or(0);
        // One letter more, so that labels never touch each other.
        let letters = longest.min(COLUMN_LETTERS) as u32 + 1;
        (*side).max(letters * font.width())
    })
}

/// Returns the width that row labels and the rows' name are wrapped to, in letters.
fn row_letters(rows: &Axis) -> usize {
    rows.labels
        .iter()
        .map(|(label, _)| label)
        .chain([&rows.name])
        .flat_map(|label| label.lines())
        .map(letters)
        .max()
        .unwrap_or(0)
        .min(ROW_LETTERS)
}

/// Places intervals of the given lengths one after another, `gap` apart, from `begin` on.
///
/// Returns the begin and the length of each interval, and the end of the last one.
fn places(begin: u64, gap: u32, sides: impl Iterator<Item = u32>) -> (Vec<(u64, u64)>, u64) {
    let (mut at, mut end) = (begin, begin);
    let places = sides
        .map(|side| {
            let place = (at, u64::from(side));
            end = at + u64::from(side);
            at = end + u64::from(gap);
            place
        })
        .collect();
    (places, end)
}

fn letters(text: &str) -> usize {
    text.chars().count()
}

/// Wraps text to at most `lines` lines of at most `length` letters.
///
/// Lines are broken at white space if possible, otherwise within a word. A text that is still too
/// long is cut off with "…".
fn wrapped(text: &str, length: usize, lines: usize) -> Vec<String> {
    if length == 0 || lines == 0 {
        return Vec::new();
    }
    let mut wrapped: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let needed = letters(&current) + letters(word) + usize::from(!current.is_empty());
            if needed > length && !current.is_empty() {
                wrapped.push(std::mem::take(&mut current));
            }
            if !current.is_empty() {
                current.push(' ');
            }
            for letter in word.chars() {
                if letters(&current) == length {
                    wrapped.push(std::mem::take(&mut current));
                }
                current.push(letter);
            }
        }
        if !current.is_empty() {
            wrapped.push(current);
        }
    }
    if wrapped.len() > lines {
        wrapped.truncate(lines);
        let last = &mut wrapped[lines - 1];
        if letters(last) == length {
            last.pop();
        }
        last.push('…');
    }
    wrapped
}

/// The bitmap font in one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Font {
    size: RasterHeight,
    /// The side of one pixel of the font, in pixels of the sheet.
    scale: u32,
}

impl Font {
    /// Returns the size for these columns: a line is about a twelfth of their mean width, but at
    /// least 16 pixels.
    fn beside(columns: &[(String, u32)]) -> Self {
        let sum: u64 = columns.iter().map(|(_, side)| u64::from(*side)).sum();
        let line = sum / (columns.len().max(1) as u64) / 12;
        let size = match line {
            0..20 => RasterHeight::Size16,
            20..24 => RasterHeight::Size20,
            24..32 => RasterHeight::Size24,
            _ => RasterHeight::Size32,
        };
        Self {
            size,
            scale: (line / 32).clamp(1, 64) as u32,
        }
    }

    /// Returns the height of a line, in pixels.
    fn height(self) -> u32 {
        self.size.val() as u32 * self.scale
    }

    /// Returns the width of the empty border around a sheet, in pixels.
    fn margin(self) -> u32 {
        self.height()
    }

    /// Returns the distance between two pictures, in pixels.
    fn gap(self) -> u32 {
        (self.height() / 4).max(4)
    }

    /// Returns the width of a letter, in pixels. All letters have the same width.
    fn width(self) -> u32 {
        get_raster_width(FontWeight::Regular, self.size) as u32 * self.scale
    }

    fn length(self, text: &str) -> u32 {
        letters(text) as u32 * self.width()
    }

    fn draw(self, canvas: &mut RgbImage, x: u32, y: u32, text: &str, weight: FontWeight) {
        for (i, letter) in text.chars().enumerate() {
            let glyph = get_raster(letter, weight, self.size);
            let x = x + i as u32 * self.width();
            for dy in 0..self.height() {
                for dx in 0..self.width() {
                    let [column, row] = [dx, dy].map(|at| (at / self.scale) as usize);
                    let ink = match glyph {
                        Some(glyph) => glyph.pixel(column, row).unwrap_or(0),
                        None => self.shape(letter, column, row),
                    };
                    let mut pixel = PAPER;
                    pixel.apply2(&INK, |paper, dark| {
                        let mixed = u32::from(paper) * (255 - u32::from(ink))
                            + u32::from(dark) * u32::from(ink);
                        (mixed / 255) as u8
                    });
                    if ink > 0 {
                        canvas.put_pixel(x + dx, y + dy, pixel);
                    }
                }
            }
        }
    }

    /// Returns the ink at a pixel of a letter that the font lacks: 0 or 255.
    ///
    /// "…" and "→" are drawn here. Every other letter becomes a box.
    fn shape(self, letter: char, x: usize, y: usize) -> u8 {
        let width = get_raster_width(FontWeight::Regular, self.size);
        let height = self.size.val();
        let stroke = (height / 16).max(1);
        // About where the font has its baseline and the middle of its small letters.
        let (base, middle) = (height * 3 / 4, height / 2);
        let within = |at: usize, from: usize, length: usize| (from..from + length).contains(&at);
        let inked = match letter {
            '…' => {
                within(y, base - stroke, stroke)
                    && [1, 3, 5]
                        .iter()
                        .any(|&at| within(x, at * width / 7, stroke))
            }
            '→' => {
                let tip = width - 1;
                let away = y.abs_diff(middle);
                let shaft = within(y, middle, stroke) && x < tip;
                let head =
                    away <= width / 3 && x < tip && within(x + away, tip - stroke, stroke + 1);
                shaft || head
            }
            _ => {
                let (top, right) = (height / 4, width - 2);
                let inside = (1..=right).contains(&x) && (top..=base).contains(&y);
                let hollow = (1 + stroke..=right - stroke).contains(&x)
                    && (top + stroke..=base - stroke).contains(&y);
                inside && !hollow
            }
        };
        if inked { 255 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(name: &str, labels: &[(&str, u32)]) -> Axis {
        Axis {
            name: name.to_owned(),
            labels: labels
                .iter()
                .map(|(label, side)| ((*label).to_owned(), *side))
                .collect(),
        }
    }

    /// Returns a sheet with a picture in each place, in a colour that no letter has.
    fn filled(title: &str, columns: &Axis, rows: &Axis) -> Sheet {
        let mut sheet = Sheet::new(title, title, columns, rows).unwrap();
        for (c, (_, width)) in columns.labels.iter().enumerate() {
            for (r, (_, height)) in rows.labels.iter().enumerate() {
                sheet.place(
                    c,
                    r,
                    &RgbImage::from_pixel(*width, *height, Rgb([200, 0, 100])),
                );
            }
        }
        sheet
    }

    #[test]
    fn pictures_are_unchanged_and_no_letter_is_near_them_or_the_edge() {
        let long =
            "a very long label with averyverylongwordthatfitsnowhere and more of it ".repeat(5);
        let cases = [
            (
                axis("x", &[("1", 64), ("150", 64), ("7.5", 64)]),
                axis("y", &[("a", 64), ("b", 64)]),
            ),
            (
                axis(&long, &[(&long, 64), (&long, 128)]),
                axis(&long, &[(&long, 8), (&long, 64)]),
            ),
            (axis("", &[("", 8)]), axis("", &[("", 8)])),
            (axis("wide", &[(&long, 512)]), axis("", &[(&long, 1024)])),
        ];
        for (columns, rows) in &cases {
            for title in ["", "a fox", &long] {
                let sheet = filled(title, columns, rows);
                let image = sheet.image();
                let inside = |x: u32, y: u32| {
                    let within = |places: &[(u32, u32)], sides: &Axis, middle: u32, at: u32| {
                        let mut places = places.iter().zip(&sides.labels);
                        places.any(|(&(from, room), &(_, side))| {
                            let from = from + (room - side) / 2 * middle;
                            (from..from + side).contains(&at)
                        })
                    };
                    within(&sheet.columns, columns, 1, x) && within(&sheet.rows, rows, 0, y)
                };
                for (x, y, pixel) in image.enumerate_pixels() {
                    let grey = pixel[0] == pixel[1] && pixel[1] == pixel[2];
                    assert_eq!(!grey, inside(x, y), "at {x}, {y}: {pixel:?}");
                    let edge = x < 8 || y < 8 || x + 8 >= image.width() || y + 8 >= image.height();
                    assert!(!edge || *pixel == PAPER, "at {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn each_label_is_seen() {
        let sheet = |title: &str, x: [&str; 2], y: [&str; 2]| {
            let (columns, rows) = (axis(x[0], &[(x[1], 64)]), axis(y[0], &[(y[1], 64)]));
            Sheet::new(title, "note", &columns, &rows)
                .unwrap()
                .image()
                .clone()
        };
        let plain = sheet("t", ["n", "l"], ["n", "l"]);
        for other in [
            sheet("T", ["n", "l"], ["n", "l"]),
            sheet("t", ["m", "l"], ["n", "l"]),
            sheet("t", ["n", "L"], ["n", "l"]),
            sheet("t", ["n", "l"], ["m", "l"]),
            sheet("t", ["n", "l"], ["n", "L"]),
        ] {
            assert_eq!(plain.dimensions(), other.dimensions());
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn a_smaller_picture_is_whole_at_the_top_of_its_place() {
        let mut sheet =
            Sheet::new("", "", &axis("", &[("a", 64)]), &axis("", &[("b", 64)])).unwrap();
        let picture = RgbImage::from_fn(32, 16, |x, y| Rgb([x as u8, y as u8, 77]));
        sheet.place(0, 0, &picture);
        let ((left, _), (top, _)) = (sheet.columns[0], sheet.rows[0]);
        let found = imageops::crop_imm(sheet.image(), left + 16, top, 32, 16).to_image();
        assert_eq!(found, picture);
    }

    #[test]
    fn letters_grow_with_the_pictures() {
        let line = |side| Font::beside(&[(String::new(), side)]).height();
        assert_eq!(
            [8, 64, 256, 512, 1024, 4096].map(line),
            [16, 16, 20, 32, 64, 320]
        );
    }

    #[test]
    fn text_wraps_at_words_then_within_them_then_is_cut() {
        assert_eq!(wrapped("a fox on blue", 5, 4), ["a fox", "on", "blue"]);
        assert_eq!(wrapped("strawberry", 4, 4), ["stra", "wber", "ry"]);
        assert_eq!(wrapped("a strawberry", 4, 2), ["a", "str…"]);
        assert_eq!(wrapped("one two three", 5, 2), ["one", "two…"]);
        assert_eq!(wrapped("20\n1.5", 9, 4), ["20", "1.5"]);
        assert_eq!(wrapped("größe 狐", 5, 4), ["größe", "狐"]);
        assert!(
            wrapped("", 5, 4).is_empty()
                && wrapped("a", 0, 4).is_empty()
                && wrapped("a", 4, 0).is_empty()
        );
    }

    #[test]
    fn letters_that_the_font_lacks_are_seen() {
        let font = Font {
            size: RasterHeight::Size16,
            scale: 1,
        };
        let drawn = |text: &str| {
            let mut canvas = RgbImage::from_pixel(7, 16, PAPER);
            font.draw(&mut canvas, 0, 0, text, FontWeight::Regular);
            canvas
        };
        assert_eq!(drawn("狐"), drawn("🦊"));
        let shapes = ["狐", "…", "→", "a", "é", " "].map(drawn);
        for (i, shape) in shapes.iter().enumerate() {
            assert!(!shapes[..i].contains(shape), "{i}");
        }
    }

    #[test]
    fn a_sheet_that_is_too_large_is_not_allocated() {
        let many = Axis {
            name: String::new(),
            labels: vec![(String::new(), u32::MAX); 1000],
        };
        assert!(Sheet::new("", "", &many, &many).is_err());
    }
}
