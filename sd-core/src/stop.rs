//! Ending a run from another thread.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ends a run from any thread, also while a network computes. Clones are the same token; once stopped it stays so.
///
/// ```
/// use sd_core::StopToken;
///
/// let stop = StopToken::new();
/// let button = stop.clone();
/// std::thread::spawn(move || button.stop()).join().unwrap();
/// assert!(stop.is_stopped());
/// ```
#[derive(Clone, Default)]
pub struct StopToken {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    next: u64,
    callbacks: Vec<(u64, Callback)>,
}

type Callback = Arc<dyn Fn() + Send + Sync>;

impl StopToken {
    /// A token that nobody has stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that was given this token to stop. Returns at once.
    pub fn stop(&self) {
        self.lock().stopped = true;
        loop {
            // Not under the lock: a callback may take locks of its own. One by one: if one panics, the others are still there.
            let callback = self.lock().callbacks.pop();
            match callback {
                Some((_, callback)) => callback(),
                None => return,
            }
        }
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Calls `callback` when the token is stopped, at once if it is already, until what is returned is dropped. For
    /// backends, to interrupt a computation; the call may still be under way on another thread after the drop.
    pub fn on_stop(&self, callback: impl Fn() + Send + Sync + 'static) -> OnStop {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        if state.stopped {
            drop(state);
            callback();
        } else {
            state.callbacks.push((id, Arc::new(callback)));
        }
        OnStop {
            token: self.clone(),
            id,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of a user's runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A callback of a [`StopToken`], registered until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it takes the callback back"]
pub struct OnStop {
    token: StopToken,
    id: u64,
}

impl Drop for OnStop {
    fn drop(&mut self) {
        let mut state = self.token.lock();
        let place = state.callbacks.iter().position(|(id, _)| *id == self.id);
        let callback = place.map(|place| state.callbacks.swap_remove(place));
        // What the callback holds is dropped after the lock: it may ask the token.
        drop(state);
        drop(callback);
    }
}

impl fmt::Debug for StopToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopToken")
            .field("stopped", &self.is_stopped())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn callbacks_run_once_and_only_while_registered() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = || {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, Relaxed);
            }
        };
        let token = StopToken::new();
        drop(token.on_stop(count()));
        let kept = token.on_stop(count());
        token.clone().stop();
        token.stop();
        assert_eq!(calls.load(Relaxed), 1);
        let late = token.on_stop(count());
        assert_eq!(calls.load(Relaxed), 2, "already stopped: at once");
        drop((kept, late));
        assert!(token.is_stopped() && !StopToken::new().is_stopped());
    }
}
