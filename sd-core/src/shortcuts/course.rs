//! Which calls of a run are computed.

use super::{Shortcuts, Skip};

/// What the network does in a call of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It computes everything.
    Full,
    /// Nothing. Its output is forecast.
    Forecast,
    /// It computes everything, and keeps its deep features at a branch.
    Keep(usize),
    /// It computes the outer layers, with deep features from an earlier call.
    Reuse(usize),
}

/// The course of a run: which of its calls are computed.
#[derive(Debug)]
pub(crate) struct Course {
    shortcuts: Shortcuts,
    /// The number of calls since the start, or since the network's conditions changed.
    calls: usize,
    /// The number of calls since the last computed one.
    skipped: usize,
    /// The current distance from one computed call to the next.
    window: f32,
}

impl Course {
    pub fn new(shortcuts: Shortcuts) -> Self {
        let mut course = Self {
            shortcuts,
            calls: 0,
            skipped: 0,
            window: 1.0,
        };
        course.restart();
        course
    }

    /// Starts again, because earlier outputs of the network say nothing about the next one.
    pub fn restart(&mut self) {
        self.calls = 0;
        self.skipped = 0;
        self.window = match self.shortcuts.skip {
            Some(Skip::Forecast(forecast)) => forecast.window,
            _ => 1.0,
        };
    }

    /// Returns what the network does in the next call, which is followed by `left` further calls.
    pub fn next(&mut self, left: usize) -> Work {
        let call = self.calls;
        self.calls += 1;
        match self.shortcuts.skip {
            None | Some(Skip::Stability(_)) => Work::Full,
            Some(Skip::Deep(deep)) => match call % deep.interval.max(1) {
                0 => Work::Keep(deep.branch),
                _ => Work::Reuse(deep.branch),
            },
            Some(Skip::Forecast(forecast)) => {
                let warm = call >= forecast.warm_up;
                let distance = self.window.max(1.0) as usize;
                if warm && !(self.skipped + 1).is_multiple_of(distance) {
                    if left >= forecast.last {
                        self.skipped += 1;
                        return Work::Forecast;
                    }
                } else if warm {
                    self.window += forecast.growth;
                }
                self.skipped = 0;
                Work::Full
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Deep, Forecast},
        *,
    };

    fn course(skip: impl Into<Skip>, calls: usize) -> Vec<Work> {
        let mut course = Course::new(Shortcuts::default().skip(skip));
        (0..calls)
            .map(|call| course.next(calls - 1 - call))
            .collect()
    }

    fn computed(skip: impl Into<Skip>, calls: usize) -> Vec<usize> {
        let works = course(skip, calls).into_iter().enumerate();
        works
            .filter(|(_, work)| *work != Work::Forecast)
            .map(|(call, _)| call)
            .collect()
    }

    #[test]
    fn the_distance_of_computed_calls_grows() {
        let forecast = Forecast {
            last: 0,
            ..Forecast::default()
        };
        assert_eq!(computed(forecast, 20), [0, 1, 2, 3, 4, 6, 8, 11, 15]);
        let last = Forecast {
            last: 2,
            ..forecast
        };
        assert_eq!(computed(last, 20), [0, 1, 2, 3, 4, 6, 8, 11, 15, 18, 19]);
        let all = Forecast {
            window: 1.0,
            growth: 0.0,
            ..forecast
        };
        assert_eq!(computed(all, 8).len(), 8);
    }

    #[test]
    fn deep_features_are_kept_at_equal_distances() {
        let deep = Deep {
            interval: 3,
            branch: 1,
        };
        let [keep, reuse] = [Work::Keep(1), Work::Reuse(1)];
        assert_eq!(course(deep, 5), [keep, reuse, reuse, keep, reuse]);
    }

    #[test]
    fn a_restart_begins_with_the_warm_up() {
        let mut course = Course::new(Shortcuts::default().skip(Forecast::default()));
        let works = |course: &mut Course| (0..7).map(|_| course.next(9)).collect::<Vec<_>>();
        let first = works(&mut course);
        course.restart();
        assert_eq!(works(&mut course), first);
    }
}
