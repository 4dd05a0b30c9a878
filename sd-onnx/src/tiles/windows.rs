//! How a feature map is divided into bands.

use std::ops::Range;

/// A band of a sweep. Rows are counted in the [units](crate::models::vae::segment::Geometry) of a
/// segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// The first unit that the band reads. It may lie above the map if the map wraps around.
    pub start: isize,
    /// The units of the output that are kept.
    pub kept: [usize; 2],
}

/// Divides `units` into bands of one size, and returns that size and the bands from top to bottom.
///
/// Each band keeps at least `least` units, except the last one, and about `wanted`. The `halo`
/// units at an end of a band are not kept, unless that end is an edge of the map. If the map
/// `wraps` around, it has no edges, and bands reach beyond it.
pub(super) fn windows(
    units: usize,
    wanted: usize,
    halo: usize,
    wraps: bool,
) -> (usize, Vec<Window>) {
    // An in-place sweep keeps copies of as many units as the halo has.
    let wanted = wanted.max(halo).max(1);
    if !wraps && units <= wanted + 2 * halo {
        let whole = Window {
            start: 0,
            kept: [0, units],
        };
        return (units, vec![whole]);
    }
    // The bands keep nearly equal numbers of units.
    let kept = units.div_ceil(units.div_ceil(wanted)).max(halo);
    let size = kept + 2 * halo;
    let mut windows = Vec::new();
    let mut from = 0;
    while from < units {
        let mut start = from as isize - halo as isize;
        let mut to = from + kept;
        if !wraps {
            start = start.clamp(0, units as isize - size as isize);
            let end = start as usize + size;
            to = if end == units { units } else { end - halo };
        }
        let to = to.min(units);
        windows.push(Window {
            start,
            kept: [from, to],
        });
        from = to;
    }
    (size, windows)
}

impl Window {
    /// Returns the rows that the band reads, for so many rows per unit.
    pub fn rows(&self, size: usize, rows: usize) -> Range<isize> {
        let start = self.start * rows as isize;
        start..start + (size * rows) as isize
    }

    /// Returns the rows that the band keeps.
    pub fn kept(&self, rows: usize) -> Range<usize> {
        let [from, to] = self.kept;
        from * rows..to * rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_kept_once_and_is_far_from_the_ends_of_its_band() {
        for units in 1..60 {
            for wanted in [1, 2, 5, 16, 100] {
                for halo in [0, 1, 3, 7] {
                    for wraps in [false, true] {
                        check(units, wanted, halo, wraps);
                    }
                }
            }
        }
    }

    fn check(units: usize, wanted: usize, halo: usize, wraps: bool) {
        let (size, windows) = windows(units, wanted, halo, wraps);
        let mut next = 0;
        for window in &windows {
            let [from, to] = window.kept;
            assert_eq!(from, next);
            assert!(from < to);
            next = to;
            let (start, end) = (window.start, window.start + size as isize);
            let at_edge = |edge: isize| !wraps && edge == start.clamp(edge, edge);
            let top = from as isize - start;
            let bottom = end - to as isize;
            assert!(top >= halo as isize || at_edge(0) && start == 0);
            assert!(bottom >= halo as isize || !wraps && end == units as isize);
            assert!(wraps || start >= 0 && end <= units as isize);
            assert!(to == units || to - from >= halo);
        }
        assert_eq!(next, units);
    }

    #[test]
    fn a_small_map_is_one_band() {
        let whole = Window {
            start: 0,
            kept: [0, 9],
        };
        assert_eq!(windows(9, 5, 2, false), (9, vec![whole]));
        assert_eq!(windows(10, 5, 2, false).1.len(), 2);
    }
}
