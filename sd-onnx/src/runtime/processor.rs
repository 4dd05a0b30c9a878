//! Properties of the processor that determine the release and the precisions.

/// Returns whether the processor is from Intel. OpenVINO's plugin lists no others.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_intel() -> bool {
    // Safety: every processor of this architecture has the instruction `cpuid` and its leaf 0.
    // Newer compilers know this and treat the call as safe.
    #[allow(unsafe_code, unused_unsafe)]
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    [leaf.ebx, leaf.edx, leaf.ecx]
        .map(u32::to_le_bytes)
        .as_flattened()
        == b"GenuineIntel"
}

/// Returns whether the processor is from Intel. OpenVINO's plugin lists no others.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn is_intel() -> bool {
    false
}

/// Returns whether OpenVINO computes in bf16 on this processor, which needs AVX-512 or
/// AVX-NE-CONVERT. On other processors it accepts the setting but silently computes in f32.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        let avx2 = is_x86_feature_detected!("avxvnni")
            && is_x86_feature_detected!("avxvnniint8")
            && is_x86_feature_detected!("avxneconvert");
        avx512 || avx2
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Returns whether ONNX Runtime has fast and exact kernels for products of u8 and i8 here, which
/// need AVX-512 VNNI or AVX-VNNI. All processors with AMX have both.
///
/// Without these instructions, two products are added in 16 bits, which can overflow. False on
/// Windows, where the temporary file with the weights was not tested.
pub(crate) fn has_int8() -> bool {
    #[cfg(all(target_arch = "x86_64", not(windows)))]
    return is_x86_feature_detected!("avxvnni")
        || (is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq"));
    #[cfg(not(all(target_arch = "x86_64", not(windows))))]
    false
}
