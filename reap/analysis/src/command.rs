//! Commands as a shell takes them.

/// A word of a command, quoted if a shell would take it for more than that.
#[must_use]
pub fn quoted_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The words of a command.
#[must_use]
pub fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted_word(word)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted_word("/tmp/a-b_1.trace"), "/tmp/a-b_1.trace");
        assert_eq!(quoted_word("a b"), "'a b'");
        assert_eq!(quoted_word("it's"), "'it'\\''s'");
        assert_eq!(quoted_word(""), "''");
        assert_eq!(
            quoted(&["study".to_owned(), "a b".to_owned()]),
            "study 'a b'"
        );
    }
}
