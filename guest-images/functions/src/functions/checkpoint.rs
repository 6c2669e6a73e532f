//! Model checkpoints: the tensors that training saved.
//!
//! A checkpoint holds each weight together with Adam's two moments of it (Kingma and Ba, ICLR
//! 2015), and a serving function loads it whole, row by row, as scripts that load a training
//! checkpoint do. Serving reads the weights only. The values are drawn from a fixed seed: the
//! arithmetic of a network does not depend on whether its weights mean something.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::random::Random;

/// A row of a tensor with what the optimiser knows of it.
struct Row {
    /// The weights; the last one is the bias.
    weights: Box<[f32]>,
    #[expect(
        dead_code,
        reason = "belongs to the checkpoint; read when training goes on"
    )]
    first_moments: Box<[f32]>,
    #[expect(
        dead_code,
        reason = "belongs to the checkpoint; read when training goes on"
    )]
    second_moments: Box<[f32]>,
}

/// A layer's weights: a row for each output.
pub(crate) struct Layer {
    rows: Vec<Row>,
}

/// The weights of one row: `inputs` of them, and a bias.
///
/// Uniform, with the variance 1 / inputs that keeps the scale of activations (Glorot and Bengio,
/// AISTATS 2010).
pub(crate) fn draw_weights(random: &mut Random, inputs: usize) -> Box<[f32]> {
    let bound = libm::sqrtf(3.0 / inputs as f32);
    (0..=inputs).map(|_| random.symmetric(bound)).collect()
}

/// The generator of a row of the layer called `name`.
pub(crate) fn row_random(name: &str, row: usize) -> Random {
    Random::labelled(name, row as u64)
}

impl Layer {
    /// Loads the layer called `name` with `outputs` rows of `inputs` weights and a bias.
    pub(crate) fn load(name: &str, outputs: usize, inputs: usize) -> Self {
        let mut rows = Vec::with_capacity(outputs);
        for row in 0..outputs {
            let mut random = row_random(name, row);
            let weights = draw_weights(&mut random, inputs);
            let first_moments = weights.iter().map(|_| random.symmetric(1e-3)).collect();
            let second_moments = weights.iter().map(|_| random.unit() * 1e-6).collect();
            rows.push(Row {
                weights,
                first_moments,
                second_moments,
            });
        }
        Self { rows }
    }

    /// How many outputs there are.
    pub(crate) fn outputs(&self) -> usize {
        self.rows.len()
    }

    /// The weights of output `output` and its bias.
    pub(crate) fn weights(&self, output: usize) -> (&[f32], f32) {
        match self.rows[output].weights.split_last() {
            Some((bias, weights)) => (weights, *bias),
            None => (&[], 0.0),
        }
    }

    /// The weighted sum of `inputs` for output `output`.
    pub(crate) fn apply(&self, output: usize, inputs: &[f32]) -> f32 {
        let (weights, bias) = self.weights(output);
        bias + dot(weights, inputs)
    }
}

/// The scalar product, in eight partial sums so that it runs in vector registers.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (left_blocks, right_blocks) = (left.chunks_exact(8), right.chunks_exact(8));
    let rest: f32 = left_blocks
        .remainder()
        .iter()
        .zip(right_blocks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (left, right) in left_blocks.zip(right_blocks) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Turns scores into probabilities in place.
pub(crate) fn softmax(scores: &mut [f32]) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = libm::expf(*score - highest);
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

/// The logistic function.
pub(crate) fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scalar_product_covers_every_element() {
        for length in [0usize, 1, 7, 8, 9, 31] {
            let left: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let right: Vec<f32> = (0..length).map(|i| (i + 1) as f32).collect();
            let expected: usize = (0..length).map(|i| i * (i + 1)).sum();
            assert_eq!(dot(&left, &right), expected as f32);
        }
    }

    #[test]
    fn probabilities_sum_to_one() {
        let mut scores = [3.0, -80.0, 90.0, 90.0];
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[2] - 0.5).abs() < 1e-6);
        assert!((sigmoid(0.0) - 0.5).abs() < 1e-7);
    }

    #[test]
    fn a_layer_has_its_shape() {
        let layer = Layer::load("shape", 3, 5);
        assert_eq!(layer.outputs(), 3);
        let (weights, bias) = layer.weights(2);
        assert_eq!(weights.len(), 5);
        assert!((layer.apply(2, &[0.0; 5]) - bias).abs() < 1e-7);
    }
}
