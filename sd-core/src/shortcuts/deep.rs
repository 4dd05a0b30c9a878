use serde::{Deserialize, Serialize};

use crate::Problem;

/// DeepCache (Ma et al. 2023, <https://arxiv.org/abs/2312.00858>): the deep layers of a UNet run
/// only in every few steps. The other steps run the outer layers, with the deep features of the
/// last full step.
///
/// ```
/// use sd_core::{Request, Shortcuts, shortcuts::Deep};
///
/// let deep = Deep { interval: 2, ..Deep::default() };
/// let request = Request::new("a fox").shortcuts(Shortcuts::NONE.skip(deep));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deep {
    /// The number of steps from one full call to the next, at least 1. At 1, all calls are full.
    ///
    /// Default: 3.
    pub interval: usize,
    /// The branch at which the network is cut, from 0, the outermost one, to
    /// [`Inputs::deep_branches`](crate::Inputs::deep_branches) - 1. With a higher branch, more
    /// layers run in each step, and the picture changes less.
    ///
    /// Default: 0.
    pub branch: usize,
}

impl Default for Deep {
    fn default() -> Self {
        Self {
            interval: 3,
            branch: 0,
        }
    }
}

impl Deep {
    /// Returns the options that cannot be used with a network of so many branches.
    pub(super) fn problems(self, branches: usize, windows: bool) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.interval == 0 {
            let field = "shortcuts.skip.deep.interval";
            problems.push(Problem::new(field, "1 or more", 0));
        }
        let field = "shortcuts.skip.deep";
        if branches == 0 {
            let expected = "another method, as this network cannot reuse deep features";
            problems.push(Problem::new(field, expected, "given"));
        } else if self.branch >= branches {
            let field = "shortcuts.skip.deep.branch";
            let expected = format!("0 to {}", branches - 1);
            problems.push(Problem::new(field, expected, self.branch));
        }
        if windows {
            let expected = "another method, as each window would need its own deep features";
            problems.push(Problem::new(field, expected, "given"));
        }
        problems
    }
}
