//! The networks, in f64 by the definitions of their layers.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::{Case, near, sigmoid, softmax};
use crate::functions::checkpoint::{draw_weights, row_random};
use crate::functions::cnn_serving::{CONVOLUTIONS, DENSE, SIDE, draw_image};
use crate::functions::rnn_serving::{CHARACTERS, EMBEDDING, HIDDEN, LAYERS, PROMPT, draw_prompt};
use crate::random::Random;

/// The rows of a layer: weights, then the bias.
struct Layer(Vec<Vec<f64>>);

impl Layer {
    fn draw(name: &str, outputs: usize, inputs: usize) -> Self {
        let row = |output| {
            let weights = draw_weights(&mut row_random(name, output), inputs);
            weights.iter().copied().map(f64::from).collect()
        };
        Self((0..outputs).map(row).collect())
    }

    fn apply(&self, inputs: &[f64]) -> Vec<f64> {
        let sum = |row: &Vec<f64>| {
            let products: f64 = row
                .iter()
                .zip(inputs)
                .map(|(weight, input)| weight * input)
                .sum();
            products + row[inputs.len()]
        };
        self.0.iter().map(sum).collect()
    }
}

/// Convolution, rectifier and pooling of `planes` of `side`: each pooled pixel by itself.
fn block(layer: &Layer, planes: &[f64], side: usize) -> Vec<f64> {
    let channels = planes.len() / side / side;
    let pixel = |channel: usize, y: isize, x: isize| {
        let inside = 0..side as isize;
        if inside.contains(&y) && inside.contains(&x) {
            planes[(channel * side + y as usize) * side + x as usize]
        } else {
            0.0
        }
    };
    let convolved = |row: &[f64], y: isize, x: isize| {
        let mut sum = row[channels * 9];
        for channel in 0..channels {
            for (tap, weight) in row[channel * 9..][..9].iter().enumerate() {
                let (down, across) = (tap as isize / 3 - 1, tap as isize % 3 - 1);
                sum += weight * pixel(channel, y + down, x + across);
            }
        }
        sum
    };
    let half = side as isize / 2;
    let mut pooled = Vec::new();
    for row in &layer.0 {
        for y in 0..half {
            for x in 0..half {
                let highest = (0..4)
                    .map(|corner| convolved(row, 2 * y + corner / 2, 2 * x + corner % 2))
                    .fold(0.0, f64::max);
                pooled.push(highest);
            }
        }
    }
    pooled
}

/// Checks a result of `cnn_serving`.
pub(super) fn cnn_serving(case: &Case<'_>) -> Result<(), String> {
    let convolutions = CONVOLUTIONS.map(|(name, from, to)| Layer::draw(name, to, from * 9));
    let dense = DENSE.map(|(name, from, to)| Layer::draw(name, to, from));
    let count = case.sizes[0];
    let classes = case.numbers("classes", count)?;
    let probabilities = case.numbers("probabilities", count)?;
    let norms = case.numbers("score_norms", count)?;
    let mut random = Random::labelled("cnn images", case.seed);
    for image in 0..count {
        let mut values: Vec<f64> = draw_image(&mut random).into_iter().map(f64::from).collect();
        for (index, layer) in convolutions.iter().enumerate() {
            values = block(layer, &values, SIDE >> index);
        }
        let hidden: Vec<f64> = dense[0]
            .apply(&values)
            .into_iter()
            .map(|value| value.max(0.0))
            .collect();
        let scores = dense[1].apply(&hidden);
        let norm = scores.iter().map(|score| score.powi(2)).sum::<f64>().sqrt();
        near(
            format!("score norm {image}"),
            norms[image],
            norm,
            1e-4 * norm.max(1.0),
        )?;
        let expected = softmax(&scores);
        let highest = expected.iter().copied().fold(0.0, f64::max);
        near(
            format!("probability {image}"),
            probabilities[image],
            highest,
            1e-4,
        )?;
        let own = expected
            .get(classes[image] as usize)
            .copied()
            .unwrap_or(f64::NAN);
        near(
            format!("the probability of class {}", classes[image]),
            own,
            highest,
            1e-4,
        )?;
    }
    Ok(())
}

/// Checks a result of `rnn_serving`.
///
/// The network is led along the text of the result, and each character is checked to be the one
/// that its random number chooses: a choice next to a border cannot make the rest differ.
pub(super) fn rnn_serving(case: &Case<'_>) -> Result<(), String> {
    let embedding = Layer::draw(LAYERS[0], CHARACTERS, EMBEDDING);
    let [update, reset, candidate] =
        [1, 2, 3].map(|gate| Layer::draw(LAYERS[gate], HIDDEN, EMBEDDING + HIDDEN));
    let output = Layer::draw(LAYERS[4], CHARACTERS, HIDDEN);
    let text = case.text("text")?.as_bytes();
    if text.len() != PROMPT + case.sizes[0] || !text.iter().all(|byte| (32..127).contains(byte)) {
        return Err(format!(
            "the text is not {} printable characters",
            PROMPT + case.sizes[0]
        ));
    }
    let mut random = Random::labelled("rnn", case.seed);
    let prompt = draw_prompt(&mut random);
    let mut state = vec![0.0; HIDDEN];
    let mut log_likelihood = 0.0;
    for (position, &byte) in text.iter().enumerate() {
        let character = usize::from(byte - 32);
        if let Some(&expected) = prompt.get(position) {
            if character != expected {
                return Err(format!("character {position} is not the prompt's"));
            }
        } else {
            let probabilities = softmax(&output.apply(&state));
            let below: f64 = probabilities[..character].iter().sum();
            let (middle, half) = (
                below + probabilities[character] / 2.0,
                probabilities[character] / 2.0,
            );
            let number = f64::from(random.unit());
            near(
                format!("the choice of character {position}"),
                number,
                middle,
                half + 1e-4,
            )?;
            log_likelihood += probabilities[character].ln();
        }
        let vector = &embedding.0[character][..EMBEDDING];
        let joined = [vector, &state].concat();
        let updates = update.apply(&joined);
        let resets = reset.apply(&joined);
        let kept: Vec<f64> = state
            .iter()
            .zip(&resets)
            .map(|(value, gate)| value * sigmoid(*gate))
            .collect();
        let candidates = candidate.apply(&[vector, &kept].concat());
        for unit in 0..HIDDEN {
            let part = sigmoid(updates[unit]);
            state[unit] += part * (candidates[unit].tanh() - state[unit]);
        }
    }
    let norm = state.iter().map(|value| value.powi(2)).sum::<f64>().sqrt();
    near("the state's norm", case.number("state_norm")?, norm, 1e-3)?;
    let tolerance = 1e-3 * text.len() as f64;
    near(
        "the log likelihood",
        case.number("log_likelihood")?,
        log_likelihood,
        tolerance,
    )
}
