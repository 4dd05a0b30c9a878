//! A token that stops runs from any thread.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Stops runs from any thread, even while a network computes.
///
/// Clones are the same token. A token that has been stopped stays stopped.
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
    /// Creates a token that has not been stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops every run that holds this token.
    ///
    /// The registered callbacks are called on this thread. The method does not wait for the runs to
    /// end.
    pub fn stop(&self) {
        self.lock().stopped = true;
        loop {
            // The lock is not held during a callback, which may lock other things. Callbacks are
            // taken one by one, so that after a panic the rest are still registered.
            let callback = self.lock().callbacks.pop();
            match callback {
                Some((_, callback)) => callback(),
                None => return,
            }
        }
    }

    /// Returns whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Registers a callback, which is called once when the token is stopped, or now if it already
    /// is. Backends use it to interrupt a computation.
    ///
    /// Dropping the returned [`OnStop`] removes the callback. A call that has begun on another
    /// thread may still be running after the drop.
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
        // The lock cannot be poisoned by user code, because none runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a callback of a [`StopToken`] registered until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it removes the callback"]
pub struct OnStop {
    token: StopToken,
    id: u64,
}

impl Drop for OnStop {
    fn drop(&mut self) {
        let mut state = self.token.lock();
        let place = state.callbacks.iter().position(|(id, _)| *id == self.id);
        let callback = place.map(|place| state.callbacks.swap_remove(place));
        // The callback is dropped after the lock is released, because dropping it may use the
        // token.
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
