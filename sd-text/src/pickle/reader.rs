//! Reads the arguments of opcodes from a pickle's bytes.

use super::value::Value;

/// The longest line of a number or a global, in bytes.
const LONGEST_LINE: usize = 4096;
/// The most bytes of a whole number.
const LONGEST_NUMBER: u64 = 256;

pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    pub fn new(bytes: &'b [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Returns the position of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("`take` returns N bytes"))
    }

    pub fn short_bytes(&mut self) -> Result<&'b [u8], String> {
        let length = self.byte()?;
        self.take(length.into())
    }

    pub fn medium_bytes(&mut self) -> Result<&'b [u8], String> {
        let length = self.u32()?;
        self.take(length.into())
    }

    pub fn long_bytes(&mut self) -> Result<&'b [u8], String> {
        let length = self.u64()?;
        self.take(length)
    }

    /// Checks that at least `length` bytes are left.
    pub fn check(&self, length: u64) -> Result<usize, String> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => Ok(length),
            _ => Err(format!("it needs {length} bytes, and {left} are left")),
        }
    }

    /// Reads a whole number in two's complement, little-endian.
    pub fn long(&mut self, length: u64) -> Result<Value, String> {
        if length > LONGEST_NUMBER {
            let most = LONGEST_NUMBER;
            return Err(format!(
                "a whole number of {length} bytes, expected at most {most}"
            ));
        }
        let bytes = self.take(length)?;
        let fill = match bytes.last() {
            Some(&last) if last >= 0x80 => 0xff,
            _ => 0,
        };
        if let Some(high) = bytes.get(8..)
            && (high.iter().any(|&byte| byte != fill) || (bytes[7] >= 0x80) != (fill == 0xff))
        {
            let digits = bytes.iter().rev().map(|byte| format!("{byte:02x}"));
            return Ok(Value::Long(format!("0x{}", digits.collect::<String>())));
        }
        let mut word = [fill; 8];
        let kept = bytes.len().min(8);
        word[..kept].copy_from_slice(&bytes[..kept]);
        Ok(Value::Int(i64::from_le_bytes(word)))
    }

    pub fn int_line(&mut self) -> Result<Value, String> {
        match self.line()? {
            // Protocols 0 and 1 write truth values like this.
            "00" => Ok(Value::Bool(false)),
            "01" => Ok(Value::Bool(true)),
            digits => whole(digits),
        }
    }

    pub fn long_line(&mut self) -> Result<Value, String> {
        let line = self.line()?;
        whole(line.strip_suffix('L').unwrap_or(line))
    }

    pub fn float_line(&mut self) -> Result<Value, String> {
        let line = self.line()?;
        let number = line.parse().map(Value::Float);
        number.map_err(|_| "a line that is not a number".to_owned())
    }

    pub fn index_line(&mut self) -> Result<u32, String> {
        let index = self.line()?.parse();
        index.map_err(|_| "a line that is not an index of the memo".to_owned())
    }

    /// Reads a module and a name in it.
    pub fn global_lines(&mut self) -> Result<(String, String), String> {
        let module = self.line()?.to_owned();
        Ok((module, self.line()?.to_owned()))
    }

    /// Reads a text in quotes with Python's escapes, as Python 2 writes it in protocol 0.
    pub fn string_line(&mut self) -> Result<Value, String> {
        let line = self.long_line_of_bytes()?;
        let inner = match line {
            [first @ (b'"' | b'\''), inner @ .., last] if first == last => inner,
            _ => return Err("a text without quotes around it".to_owned()),
        };
        let mut out = Vec::with_capacity(inner.len());
        let mut bytes = inner.iter().copied();
        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                out.push(byte);
                continue;
            }
            out.push(match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'x') => code(&mut bytes, 2)? as u8,
                Some(same @ (b'\\' | b'\'' | b'"')) => same,
                _ => return Err("an escape that Python does not write".to_owned()),
            });
        }
        Ok(text_or_bytes(&out))
    }

    /// Reads a Latin-1 text with escapes for other characters, as Python 3 writes it in protocol 0.
    pub fn unicode_line(&mut self) -> Result<Value, String> {
        let mut bytes = self.long_line_of_bytes()?.iter().copied();
        let mut out = String::new();
        while let Some(byte) = bytes.next() {
            let kind = match byte {
                b'\\' => bytes.clone().next(),
                _ => None,
            };
            let digits = match kind {
                Some(b'u') => 4,
                Some(b'U') => 8,
                _ => {
                    out.push(byte.into());
                    continue;
                }
            };
            bytes.next();
            let code = code(&mut bytes, digits)?;
            let character = char::from_u32(code);
            out.push(
                character.ok_or_else(|| format!("the character {code:#x}, which is not valid"))?,
            );
        }
        Ok(Value::Text(out))
    }

    fn take(&mut self, length: u64) -> Result<&'b [u8], String> {
        let length = self.check(length)?;
        let bytes = &self.bytes[self.at..][..length];
        self.at += length;
        Ok(bytes)
    }

    /// Reads a short line of UTF-8.
    fn line(&mut self) -> Result<&'b str, String> {
        let start = self.at;
        let line = self.long_line_of_bytes()?;
        let text = std::str::from_utf8(line)
            .ok()
            .filter(|text| text.len() <= LONGEST_LINE);
        text.ok_or_else(|| {
            self.at = start;
            format!("a line that is not UTF-8, or longer than {LONGEST_LINE} bytes")
        })
    }

    fn long_line_of_bytes(&mut self) -> Result<&'b [u8], String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or("a line without an end".to_owned())?;
        self.at += end + 1;
        Ok(&rest[..end])
    }
}

/// Converts a string. Python 3 writes UTF-8, but Python 2 may write any bytes.
pub(super) fn text_or_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Bytes(bytes.to_vec()),
    }
}

fn whole(digits: &str) -> Result<Value, String> {
    if let Ok(number) = digits.parse() {
        return Ok(Value::Int(number));
    }
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    match !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Ok(Value::Long(digits.to_owned())),
        false => Err("a line that is not a whole number".to_owned()),
    }
}

/// Reads a number of `digits` hexadecimal digits.
fn code(bytes: &mut impl Iterator<Item = u8>, digits: usize) -> Result<u32, String> {
    let mut code = 0_u32;
    for _ in 0..digits {
        let digit = bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        let digit = digit.ok_or("an escape that Python does not write".to_owned())?;
        code = code << 4 | digit;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(bytes: &[u8]) -> Value {
        Reader::new(bytes, 0).long(bytes.len() as u64).unwrap()
    }

    #[test]
    fn whole_numbers_of_any_length() {
        let int = |bytes: &[u8]| match long(bytes) {
            Value::Int(number) => number,
            other => panic!("{other:?}"),
        };
        assert_eq!(int(b""), 0);
        assert_eq!(int(b"\xff"), -1);
        assert_eq!(int(b"\xff\0"), 255);
        assert_eq!(int(b"\0\0\0\0\0\0\0\x80"), i64::MIN);
        assert_eq!(int(b"\0\0\0\0\0\0\0\x80\xff"), i64::MIN);
        assert_eq!(int(b"\xff\xff\xff\xff\xff\xff\xff\x7f\0"), i64::MAX);
        for bytes in [
            b"\0\0\0\0\0\0\0\x80\0",
            b"\0\0\0\0\0\0\0\0\x01",
            b"\0\0\0\0\0\0\0\x7f\xff",
        ] {
            assert!(matches!(long(bytes), Value::Long(_)), "{bytes:?}");
        }
    }

    #[test]
    fn texts_of_protocol_0() {
        let text = |value| match value {
            Value::Text(text) => text,
            other => panic!("{other:?}"),
        };
        let string = |line: &[u8]| Reader::new(line, 0).string_line();
        assert_eq!(text(string(b"'a\\n\\\\\\x41\\''\n").unwrap()), "a\n\\A'");
        for line in [
            &b"'\n"[..],
            b"a\n",
            b"'a\"\n",
            b"'\\q'\n",
            b"'\\x4'\n",
            b"'a'",
        ] {
            assert!(string(line).is_err(), "{line:?}");
        }
        let unicode = |line: &[u8]| Reader::new(line, 0).unicode_line();
        assert_eq!(
            text(unicode(b"\xe9\\u72d0\\U0001f98a\\n\n").unwrap()),
            "é狐🦊\\n"
        );
        assert!(unicode(b"\\ud800\n").is_err() && unicode(b"\\u12\n").is_err());
    }
}
