//! The memory of this process, from Linux's `/proc/self/status`, in MiB.

use std::{
    fs, io, process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// How often [`AnonymousPeak`] looks.
const PERIOD: Duration = Duration::from_millis(5);

/// Returns the largest resident set so far (`VmHWM`), which includes pages of mapped files.
///
/// # Errors
/// Fails where there is no `/proc/self/status` with that line.
pub fn peak_mib() -> io::Result<f64> {
    Ok(status("VmHWM:")? as f64 / 1024.0)
}

/// Returns the anonymous memory that is resident now (`RssAnon`).
///
/// # Errors
/// Fails where there is no `/proc/self/status` with that line.
pub fn anonymous_mib() -> io::Result<f64> {
    Ok(status("RssAnon:")? as f64 / 1024.0)
}

/// The largest anonymous memory of this process, sampled every 5 ms by a thread.
///
/// Linux keeps no such peak itself. Anonymous memory cannot be dropped and read again, as pages of
/// mapped weights can.
#[derive(Debug)]
pub struct AnonymousPeak {
    kib: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl AnonymousPeak {
    /// Starts sampling.
    ///
    /// # Errors
    /// Fails where [`anonymous_mib`] does.
    pub fn start() -> io::Result<Self> {
        let kib = Arc::new(AtomicU64::new(status("RssAnon:")?));
        let stopped = Arc::new(AtomicBool::new(false));
        let (peak, stop) = (kib.clone(), stopped.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(now) = status("RssAnon:") {
                    peak.fetch_max(now, Ordering::Relaxed);
                }
                thread::sleep(PERIOD);
            }
        });
        Ok(Self { kib, stopped })
    }

    /// Returns the largest sample so far.
    pub fn mib(&self) -> f64 {
        self.kib.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

impl Drop for AnonymousPeak {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// The size after `name` in the process's status, in KiB.
fn status(name: &str) -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let size = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = size.and_then(|size| size.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| {
        let found = format!("/proc/self/status of {} has no {name}", process::id());
        io::Error::new(io::ErrorKind::Unsupported, found)
    })
}

#[cfg(all(test, target_os = "linux"))]
// In a test it is the failure.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_outlives_what_made_it() {
        const MIB: usize = 256;
        let peak = AnonymousPeak::start().unwrap();
        let before = anonymous_mib().unwrap();
        let filled = vec![1u8; MIB << 20];
        thread::sleep(20 * PERIOD);
        drop(std::hint::black_box(filled));
        let rise = peak.mib() - before;
        assert!(rise > 0.9 * MIB as f64, "it rose by {rise} MiB");
        assert!(anonymous_mib().unwrap() < before + 0.5 * MIB as f64);
        assert!(peak_mib().unwrap() >= peak.mib());
    }
}
