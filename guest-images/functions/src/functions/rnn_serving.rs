//! `rnn_serving`: writes a text, character by character, with a gated recurrent network (Cho et
//! al., EMNLP 2014).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::checkpoint::{Layer, sigmoid, softmax};
use super::{Workload, fields, rounded};
use crate::FunctionError;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "characters",
    description: "how many characters are written after the prompt",
    default: 10,
    minimum: 1,
    maximum: 256,
}];

/// How many units the hidden layer has.
pub(crate) const HIDDEN: usize = 512;
/// The length of a character's vector.
pub(crate) const EMBEDDING: usize = 512;
/// How many characters the network knows: those of printable ASCII.
pub(crate) const CHARACTERS: usize = 95;
/// How many characters the prompt has.
pub(crate) const PROMPT: usize = 4;
/// The names of the layers: characters' vectors, the three gates, the characters' scores.
pub(crate) const LAYERS: [&str; 5] = [
    "rnn embedding",
    "rnn update",
    "rnn reset",
    "rnn candidate",
    "rnn output",
];

struct RnnServing {
    embedding: Layer,
    update: Layer,
    reset: Layer,
    candidate: Layer,
    output: Layer,
}

/// Loads the network's checkpoint.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let gate = |name| Layer::load(name, HIDDEN, EMBEDDING + HIDDEN);
    Ok(Box::new(RnnServing {
        embedding: Layer::load(LAYERS[0], CHARACTERS, EMBEDDING),
        update: gate(LAYERS[1]),
        reset: gate(LAYERS[2]),
        candidate: gate(LAYERS[3]),
        output: Layer::load(LAYERS[4], CHARACTERS, HIDDEN),
    }))
}

/// The characters that the text begins with, as indices from the space character.
pub(crate) fn draw_prompt(random: &mut Random) -> [usize; PROMPT] {
    [(); PROMPT].map(|()| random.index(CHARACTERS))
}

impl RnnServing {
    /// Feeds `character` and leaves the new state in the second half of `joined`, whose first half
    /// is for the character's vector.
    fn step(&self, character: usize, joined: &mut [f32]) {
        let (vector, _) = self.embedding.weights(character);
        joined[..EMBEDDING].copy_from_slice(vector);
        let update: Vec<f32> = (0..HIDDEN)
            .map(|unit| sigmoid(self.update.apply(unit, joined)))
            .collect();
        let mut gated = joined.to_vec();
        for (unit, value) in gated[EMBEDDING..].iter_mut().enumerate() {
            *value *= sigmoid(self.reset.apply(unit, joined));
        }
        for (unit, update) in update.iter().enumerate() {
            let candidate = libm::tanhf(self.candidate.apply(unit, &gated));
            let state = &mut joined[EMBEDDING + unit];
            *state = (1.0 - update) * *state + update * candidate;
        }
    }
}

impl Workload for RnnServing {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("rnn", parameters.seed);
        let mut joined = vec![0.0f32; EMBEDDING + HIDDEN];
        let mut text = String::new();
        let mut log_likelihood = 0.0f32;
        let prompt = draw_prompt(&mut random);
        for character in prompt {
            text.push(char::from(b' ' + character as u8));
            self.step(character, &mut joined);
        }
        for _ in 0..parameters.size(0) {
            let mut scores: Vec<f32> = (0..CHARACTERS)
                .map(|character| self.output.apply(character, &joined[EMBEDDING..]))
                .collect();
            softmax(&mut scores);
            let mut left = random.unit();
            let mut chosen = CHARACTERS - 1;
            for (character, probability) in scores.iter().enumerate() {
                if left < *probability {
                    chosen = character;
                    break;
                }
                left -= probability;
            }
            log_likelihood += libm::logf(scores[chosen]);
            text.push(char::from(b' ' + chosen as u8));
            self.step(chosen, &mut joined);
        }
        let square: f32 = joined[EMBEDDING..].iter().map(|state| state * state).sum();
        Ok(fields([
            ("text", Value::from(text)),
            ("log_likelihood", rounded(log_likelihood)),
            ("state_norm", rounded(libm::sqrtf(square))),
        ]))
    }
}
