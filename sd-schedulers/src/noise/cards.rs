/// Graphics cards and the number of threads that each holds at once.
///
/// The number is multiprocessors times resident threads per multiprocessor. It decides the order in
/// which torch draws on the card ([`Philox::cuda`](crate::noise::Philox::cuda)).
///
/// The numbers follow from the vendor's published core counts and from the limits of each compute
/// capability in its programming guide. They were not measured on the cards. If a card was sold in
/// two sizes, the name without a size is the first one: 6 GB for the GTX 1060 and the RTX 2060, 8
/// GB for the RTX 3050 and 10 GB for the RTX 3080.
pub const CARDS: &[(&str, u32)] = &[
    ("GTX 1060", 10 * 2048),
    ("GTX 1070", 15 * 2048),
    ("GTX 1080", 20 * 2048),
    ("GTX 1080 Ti", 28 * 2048),
    ("P100", 56 * 2048),
    ("V100", 80 * 2048),
    ("Titan V", 80 * 2048),
    ("GTX 1650", 14 * 1024),
    ("GTX 1660", 22 * 1024),
    ("GTX 1660 Super", 22 * 1024),
    ("GTX 1660 Ti", 24 * 1024),
    ("RTX 2060", 30 * 1024),
    ("RTX 2060 12 GB", 34 * 1024),
    ("RTX 2060 Super", 34 * 1024),
    ("RTX 2070", 36 * 1024),
    ("RTX 2070 Super", 40 * 1024),
    ("RTX 2080", 46 * 1024),
    ("RTX 2080 Super", 48 * 1024),
    ("RTX 2080 Ti", 68 * 1024),
    ("T4", 40 * 1024),
    ("Titan RTX", 72 * 1024),
    ("RTX 8000", 72 * 1024),
    ("A100", 108 * 2048),
    ("A10", 72 * 1536),
    ("A40", 84 * 1536),
    ("RTX A6000", 84 * 1536),
    ("RTX 3050", 20 * 1536),
    ("RTX 3060", 28 * 1536),
    ("RTX 3060 Ti", 38 * 1536),
    ("RTX 3070", 46 * 1536),
    ("RTX 3070 Ti", 48 * 1536),
    ("RTX 3080", 68 * 1536),
    ("RTX 3080 12 GB", 70 * 1536),
    ("RTX 3080 Ti", 80 * 1536),
    ("RTX 3090", 82 * 1536),
    ("RTX 3090 Ti", 84 * 1536),
    ("RTX 4060", 24 * 1536),
    ("RTX 4060 Ti", 34 * 1536),
    ("RTX 4070", 46 * 1536),
    ("RTX 4070 Super", 56 * 1536),
    ("RTX 4070 Ti", 60 * 1536),
    ("RTX 4070 Ti Super", 66 * 1536),
    ("RTX 4080", 76 * 1536),
    ("RTX 4080 Super", 80 * 1536),
    ("RTX 4090", 128 * 1536),
    ("L4", 58 * 1536),
    ("L40", 142 * 1536),
    ("L40S", 142 * 1536),
    ("RTX 6000 Ada", 142 * 1536),
    ("H100 SXM", 132 * 2048),
    ("H100 PCIe", 114 * 2048),
    ("H200", 132 * 2048),
    ("RTX 5070", 48 * 1536),
    ("RTX 5070 Ti", 70 * 1536),
    ("RTX 5080", 84 * 1536),
    ("RTX 5090", 170 * 1536),
];

/// Returns the number of threads of a card in [`CARDS`], or `None` for an unknown card.
///
/// The name may be in upper or lower case, and may begin with the maker's words.
///
/// ```
/// use sd_schedulers::noise::cuda_threads;
///
/// assert_eq!(cuda_threads("NVIDIA GeForce RTX 4090"), Some(196_608));
/// assert_eq!(cuda_threads("RTX 4099"), None);
/// ```
pub fn cuda_threads(card: &str) -> Option<u32> {
    let makers = ["nvidia ", "geforce ", "quadro ", "tesla "];
    let card = card.trim().to_ascii_lowercase();
    let name = makers.iter().fold(&*card, |name, maker| {
        name.strip_prefix(maker).unwrap_or(name)
    });
    let mut cards = CARDS.iter();
    let (_, threads) = cards.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    Some(*threads)
}
