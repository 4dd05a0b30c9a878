//! Lets one call run in tiles at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sd_core::StopToken;

/// The right to run an autoencoder in tiles. Two calls at once would need twice the memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<State>);

#[derive(Debug, Default)]
struct State {
    taken: Mutex<bool>,
    /// Signals that the turn was given back, or that a stop token was stopped.
    changed: Condvar,
}

/// A turn that was taken. Dropping this value gives it back.
pub(crate) struct Taken(Turn);

impl Turn {
    /// Waits for the turn and takes it. Returns `None` if `stop` is stopped first.
    pub fn take(&self, stop: &StopToken) -> Option<Taken> {
        let state = self.0.clone();
        let _on_stop = stop.on_stop(move || {
            // With the lock, the signal cannot fall between the moment when a call checks its
            // token and the moment when it starts to wait.
            let _taken = state.lock();
            state.changed.notify_all();
        });
        // Dropped before the callback is removed, which takes the same lock.
        let mut taken = self.0.lock();
        loop {
            if stop.is_stopped() {
                return None;
            }
            if !*taken {
                *taken = true;
                return Some(Taken(self.clone()));
            }
            let waited = self.0.changed.wait(taken);
            taken = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag is valid even after a panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Turn(state) = &self.0;
        *state.lock() = false;
        state.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_waiting_call_gets_the_turn_or_is_stopped() {
        let turn = Turn::default();
        let first = turn.take(&StopToken::new());
        let [patient, stopped] = [(); 2].map(|()| {
            let (turn, stop) = (turn.clone(), StopToken::new());
            let token = stop.clone();
            (thread::spawn(move || turn.take(&token).is_some()), stop)
        });
        stopped.1.stop();
        assert!(!stopped.0.join().expect("no panic"));
        drop(first);
        assert!(patient.0.join().expect("no panic"));
    }
}
