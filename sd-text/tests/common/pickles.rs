//! Makes `torch.save` files byte by byte.

use std::ops::Range;

use flate2::Crc;

pub const PICKLE: &str = "archive/data.pkl";

/// A ZIP file as torch writes it, with this pickle and a storage `0` of 24 bytes, 0 to 23.
pub fn file(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..24).collect();
    zip(&[
        (PICKLE, pickle),
        ("archive/data/0", &numbers),
        ("archive/version", b"3\n"),
    ])
}

/// A ZIP file with these entries, stored.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let plain: Vec<_> = entries
        .iter()
        .map(|&(name, data)| (name, data, data.len(), 0))
        .collect();
    zip_with(&plain)
}

/// A ZIP file with these entries: name, bytes in the file, declared unpacked length, and method.
/// The checksums are computed for stored entries and left out for others.
pub fn zip_with(entries: &[(&str, &[u8], usize, u16)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for &(name, data, length, method) in entries {
        let mut crc = Crc::new();
        crc.update(data);
        let crc = if method == 0 { crc.sum() } else { 0 };
        let mut middle = vec![0; 4];
        middle.extend(method.to_le_bytes());
        middle.extend([0; 4]);
        middle.extend(crc.to_le_bytes());
        middle.extend((data.len() as u32).to_le_bytes());
        middle.extend((length as u32).to_le_bytes());
        middle.extend((name.len() as u16).to_le_bytes());
        middle.extend([0; 2]);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&middle);
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(middle);
        file.extend(name.as_bytes());
        file.extend(data);
    }
    end(file, &directory, entries.len() as u16)
}

/// The entries of one of torch's ZIP files, with their names. The entries are stored.
pub fn entries(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize, length: usize| {
        let bytes = file[at..at + length].iter().rev();
        bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let end = file.len() - 22;
    let (count, mut at) = (number(end + 10, 2), number(end + 16, 4));
    let mut entries = Vec::new();
    for _ in 0..count {
        let (length, name, local) = (number(at + 24, 4), number(at + 28, 2), number(at + 42, 4));
        let text = String::from_utf8(file[at + 46..at + 46 + name].to_vec()).unwrap();
        let start = local + 30 + number(local + 26, 2) + number(local + 28, 2);
        entries.push((text, file[start..start + length].to_vec()));
        at += 46 + name + number(at + 30, 2) + number(at + 32, 2);
    }
    entries
}

/// Appends the directory and the last record to the entries.
pub fn end(mut file: Vec<u8>, directory: &[u8], count: u16) -> Vec<u8> {
    let at = file.len() as u32;
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(at.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// The same file with other bytes, `distance` bytes after the start of the `nth` occurrence of
/// `tag`.
pub fn patched(mut file: Vec<u8>, tag: &[u8], nth: usize, distance: usize, new: &[u8]) -> Vec<u8> {
    let places = file.windows(tag.len()).enumerate();
    let mut places = places.filter(|(_, window)| *window == tag);
    let at = places.nth(nth).unwrap().0 + distance;
    let place: Range<usize> = at..at + new.len();
    file[place].copy_from_slice(new);
    file
}

/// The opcodes of a storage of class `torch.KIND` with `count` values, in protocol 0.
pub fn storage(kind: &str, count: &str) -> String {
    format!("(Vstorage\nctorch\n{kind}\nV0\nVcpu\nI{count}\ntQ")
}

/// The opcodes of a tensor in a storage of 6 values. Shape and strides are numbers separated by
/// spaces.
pub fn tensor(offset: &str, shape: &str, strides: &str) -> String {
    tensor_of(&storage("FloatStorage", "6"), offset, shape, strides, "")
}

/// The opcodes of a tensor in a storage, with more arguments.
pub fn tensor_of(storage: &str, offset: &str, shape: &str, strides: &str, more: &str) -> String {
    let tuple = |numbers: &str| {
        let numbers = numbers
            .split_whitespace()
            .map(|number| format!("I{number}\n"));
        format!("({}t", numbers.collect::<String>())
    };
    let (shape, strides) = (tuple(shape), tuple(strides));
    format!(
        "ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{shape}{strides}I00\n(d{more}tR"
    )
}

/// A pickle of a dictionary with one entry `a`.
pub fn dict(value: &str) -> Vec<u8> {
    format!("(dVa\n{value}s.").into_bytes()
}

/// A file of the legacy format with one storage.
pub fn legacy(pickle: &[u8], key: &str, count: u64, data: &[u8]) -> Vec<u8> {
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    file.extend(pickle);
    file.extend(format!("(V{key}\nl.").bytes());
    file.extend(count.to_le_bytes());
    file.extend(data);
    file
}
