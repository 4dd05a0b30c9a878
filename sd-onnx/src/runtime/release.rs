//! The release of ONNX Runtime that is fetched, for each platform that has a wheel of it.

/// The release.
pub(super) const VERSION: &str = "1.32.0";

/// Where one platform's library is: the wheel, its checksum, and the library in it with its checksum.
#[derive(Debug)]
pub(super) struct Release {
    /// `std::env::consts::OS` and `ARCH`.
    platform: (&'static str, &'static str),
    /// The wheel's platform tag.
    #[cfg_attr(
        not(feature = "fetch"),
        expect(dead_code, reason = "only fetching needs it")
    )]
    pub tag: &'static str,
    #[cfg_attr(
        not(feature = "fetch"),
        expect(dead_code, reason = "only fetching needs it")
    )]
    pub wheel_sha256: &'static str,
    /// The library's path in the wheel.
    pub member: &'static str,
    pub library_sha256: &'static str,
}

/// Wheels for CPython 3.11; the library in them does not know Python.
static RELEASES: [Release; 4] = [
    Release {
        platform: ("linux", "x86_64"),
        tag: "manylinux_2_28_x86_64",
        wheel_sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        member: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        library_sha256: "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    },
    Release {
        platform: ("linux", "aarch64"),
        tag: "manylinux_2_28_aarch64",
        wheel_sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        member: "onnxruntime/capi/libonnxruntime.so.1.32.0",
        library_sha256: "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    },
    Release {
        platform: ("macos", "aarch64"),
        tag: "macosx_14_0_arm64",
        wheel_sha256: "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c",
        member: "onnxruntime/capi/libonnxruntime.1.32.0.dylib",
        library_sha256: "fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7",
    },
    Release {
        platform: ("windows", "x86_64"),
        tag: "win_amd64",
        wheel_sha256: "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72",
        member: "onnxruntime/capi/onnxruntime.dll",
        library_sha256: "e9feebaed867b76f741c14ae64e056a3da64a153a61994f1fb48eadc7f9b3ba8",
    },
];

/// The row for the platform that this is compiled for.
pub(super) fn for_this_platform() -> Option<&'static Release> {
    let here = (std::env::consts::OS, std::env::consts::ARCH);
    RELEASES.iter().find(|release| release.platform == here)
}

impl Release {
    /// The folder in the cache.
    pub fn folder(&self) -> String {
        let (os, arch) = self.platform;
        format!("onnxruntime-{VERSION}-{os}-{arch}")
    }

    /// The library's file name.
    pub fn file(&self) -> &'static str {
        self.member
            .rsplit('/')
            .next()
            .expect("split gives at least one part")
    }
}
