//! `helloworld`: greets people in several languages from a message catalogue.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Workload, fields};
use crate::FunctionError;
use crate::digest::sha256_hex;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::runtime::NameTable;
use crate::runtime::library::WORDS;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "greetings",
    description: "how many people are greeted, each in the next language",
    default: 8,
    minimum: 1,
    maximum: 64,
}];

/// The greeting in each language; `{}` stands for the name.
pub(crate) const GREETINGS: [(&str, &str); 16] = [
    ("cs", "Ahoj, {}!"),
    ("da", "Hej, {}!"),
    ("de", "Hallo, {}!"),
    ("en", "Hello, {}!"),
    ("es", "Hola, {}!"),
    ("et", "Tere, {}!"),
    ("fi", "Hei, {}!"),
    ("fr", "Bonjour, {} !"),
    ("hu", "Szia, {}!"),
    ("it", "Ciao, {}!"),
    ("lv", "Sveiki, {}!"),
    ("nl", "Hoi, {}!"),
    ("pl", "Witaj, {}!"),
    ("pt", "Ola, {}!"),
    ("sv", "Hejsan, {}!"),
    ("tr", "Merhaba, {}!"),
];

/// How many messages the catalogue of a language has beside the greeting.
const MESSAGES_PER_LANGUAGE: usize = 1500;

struct HelloWorld {
    catalogues: NameTable<NameTable<Box<str>>>,
}

/// Loads the message catalogues of all languages.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut catalogues = NameTable::with_capacity(GREETINGS.len());
    for (language, greeting) in GREETINGS {
        let mut catalogue = NameTable::with_capacity(MESSAGES_PER_LANGUAGE);
        let mut random = Random::labelled(language, 0);
        for number in 0..MESSAGES_PER_LANGUAGE {
            let mut message = String::new();
            for _ in 0..4 + random.below(16) {
                message.push_str(WORDS[random.index(WORDS.len())]);
                message.push(' ');
            }
            catalogue.insert(Rc::from(format!("message.{number:04}")), Box::from(message));
        }
        catalogue.insert(Rc::from("greeting"), Box::from(greeting));
        catalogues.insert(Rc::from(language), catalogue);
    }
    Ok(Box::new(HelloWorld { catalogues }))
}

/// The name of the person that is greeted next.
pub(crate) fn person(random: &mut Random) -> String {
    const SYLLABLES: [&str; 12] = [
        "an", "bo", "ce", "da", "el", "fi", "go", "ha", "is", "jo", "ka", "le",
    ];
    let mut name = String::new();
    for _ in 0..2 + random.below(3) {
        name.push_str(SYLLABLES[random.index(SYLLABLES.len())]);
    }
    name[..1].make_ascii_uppercase();
    name
}

impl Workload for HelloWorld {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("people", parameters.seed);
        let mut lines: Vec<String> = Vec::with_capacity(parameters.size(0));
        for number in 0..parameters.size(0) {
            let (language, _) = GREETINGS[number % GREETINGS.len()];
            let pattern = self
                .catalogues
                .get(language)
                .and_then(|catalogue| catalogue.get("greeting"))
                .ok_or_else(|| FunctionError::Data {
                    operation: "looking a greeting up",
                    message: format!("the catalogue of language {language:?} has none"),
                })?;
            lines.push(pattern.replace("{}", &person(&mut random)));
        }
        let text = lines.join("\n");
        Ok(fields([
            (
                "first",
                Value::from(lines.first().map_or("", String::as_str)),
            ),
            ("last", Value::from(lines.last().map_or("", String::as_str))),
            ("text_bytes", Value::from(text.len())),
            ("text_sha256", Value::from(sha256_hex(text.as_bytes()))),
        ]))
    }
}
