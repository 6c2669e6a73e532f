//! `image_rotate`: decodes a JPEG, converts its colours by a device profile, rotates it by quarter
//! turns and encodes it again.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Workload, fields, jpeg};
use crate::FunctionError;
use crate::digest::sha256_hex;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 3] = [
    SizeParameter {
        name: "width",
        description: "the width of the image in pixels",
        default: 256,
        minimum: 16,
        maximum: 1024,
    },
    SizeParameter {
        name: "height",
        description: "the height of the image in pixels",
        default: 192,
        minimum: 16,
        maximum: 1024,
    },
    SizeParameter {
        name: "quarter_turns",
        description: "how many quarter turns clockwise the image is rotated by",
        default: 1,
        minimum: 0,
        maximum: 3,
    },
];

/// How many profiles are loaded.
const PROFILES: usize = 12;
/// The profile that images are converted with.
pub(crate) const OUTPUT_PROFILE: usize = 5;
/// The rendering intents of a profile: perceptual, colorimetric, saturation.
const INTENTS: usize = 3;
/// The intent that images are converted with.
pub(crate) const OUTPUT_INTENT: usize = 0;
/// How many grid points a profile has in each direction, as in common ICC profiles.
pub(crate) const GRID: usize = 33;
/// A result describes the rotated image by the mean colours of this many cells across and down.
pub(crate) const CELLS: usize = 6;

/// A row of grid points: red and green are fixed, blue varies.
struct GridRow {
    intents: [Box<[[f32; 3]]>; INTENTS],
}

struct ImageRotate {
    /// For each profile a row for each red and green.
    profiles: Vec<Vec<GridRow>>,
}

/// The colours, from 0 to 255, of a grid row of a profile for one intent.
pub(crate) fn draw_grid_row(profile: usize, intent: usize, row: usize) -> Box<[[f32; 3]]> {
    let seed = ((profile * INTENTS + intent) * GRID * GRID + row) as u64;
    let mut random = Random::labelled("profile", seed);
    let level = |index: usize| index as f32 * 255.0 / (GRID - 1) as f32;
    let (red, green) = (level(row / GRID), level(row % GRID));
    (0..GRID)
        .map(|blue| {
            [red, green, level(blue)]
                .map(|value| (value + random.symmetric(12.0)).clamp(0.0, 255.0))
        })
        .collect()
}

/// Loads the profiles.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let profiles = (0..PROFILES)
        .map(|profile| {
            (0..GRID * GRID)
                .map(|row| GridRow {
                    intents: core::array::from_fn(|intent| draw_grid_row(profile, intent, row)),
                })
                .collect()
        })
        .collect();
    Ok(Box::new(ImageRotate { profiles }))
}

/// The image that is sent in: ramps of red and green with waves, blue blocks and grain.
pub(crate) fn draw_image(seed: u64, width: usize, height: usize) -> Vec<u8> {
    let mut random = Random::labelled("photograph", seed);
    let (block, phase) = (8 + random.index(24), random.index(64));
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let wave = (x + y + phase) % 64;
            let wave = wave.min(63 - wave) / 2;
            let grain = random.index(8);
            let red = (x * 240 / width + wave).min(255);
            let green = (y * 240 / height + wave + grain).min(255);
            let blue = (x / block * 37 + y / block * 91) % 248 + grain;
            pixels.extend_from_slice(&[red as u8, green as u8, blue as u8]);
        }
    }
    pixels
}

/// Converts a colour by interpolation between the eight grid points around it.
fn convert(grid: &[GridRow], pixel: &[u8]) -> [u8; 3] {
    let position = |value: u8| {
        let scaled = f32::from(value) * ((GRID - 1) as f32 / 255.0);
        let index = (scaled as usize).min(GRID - 2);
        (index, scaled - index as f32)
    };
    let (red, red_part) = position(pixel[0]);
    let (green, green_part) = position(pixel[1]);
    let (blue, blue_part) = position(pixel[2]);
    let row = |red: usize, green: usize| {
        let points = &grid[red * GRID + green].intents[OUTPUT_INTENT];
        blend(points[blue], points[blue + 1], blue_part)
    };
    let low = blend(row(red, green), row(red, green + 1), green_part);
    let high = blend(row(red + 1, green), row(red + 1, green + 1), green_part);
    blend(low, high, red_part).map(|value| (value + 0.5) as u8)
}

fn blend(low: [f32; 3], high: [f32; 3], part: f32) -> [f32; 3] {
    core::array::from_fn(|channel| low[channel] + (high[channel] - low[channel]) * part)
}

/// Rotates RGB pixels clockwise: pixels, width, height.
fn rotate(
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    quarter_turns: usize,
) -> (Vec<u8>, usize, usize) {
    if quarter_turns == 0 {
        return (pixels, width, height);
    }
    let (new_width, new_height) = if quarter_turns == 2 {
        (width, height)
    } else {
        (height, width)
    };
    let mut rotated = vec![0u8; pixels.len()];
    for (index, target) in rotated.chunks_exact_mut(3).enumerate() {
        let (x, y) = (index % new_width, index / new_width);
        let (from_x, from_y) = match quarter_turns {
            1 => (y, height - 1 - x),
            2 => (width - 1 - x, height - 1 - y),
            _ => (width - 1 - y, x),
        };
        target.copy_from_slice(&pixels[(from_y * width + from_x) * 3..][..3]);
    }
    (rotated, new_width, new_height)
}

/// The mean colour of each cell of a grid over the image, in tenths, row by row.
fn cell_means(pixels: &[u8], width: usize, height: usize) -> Vec<u64> {
    let mut sums = [[0u64; 3]; CELLS * CELLS];
    let mut counts = [0u64; CELLS * CELLS];
    for (index, pixel) in pixels.chunks_exact(3).enumerate() {
        let cell = (index / width * CELLS / height) * CELLS + index % width * CELLS / width;
        counts[cell] += 1;
        for (sum, value) in sums[cell].iter_mut().zip(pixel) {
            *sum += u64::from(*value);
        }
    }
    let means = |(sums, count): (&[u64; 3], &u64)| sums.map(|sum| sum * 10 / (*count).max(1));
    sums.iter().zip(&counts).flat_map(means).collect()
}

impl ImageRotate {
    /// The whole way of an image: the new JPEG, and the pixels that it was made from.
    fn process(&self, upload: &[u8], turns: usize) -> Result<Processed, FunctionError> {
        let (mut pixels, width, height) = jpeg::decode(upload)?;
        let grid = &self.profiles[OUTPUT_PROFILE];
        for pixel in pixels.chunks_exact_mut(3) {
            let converted = convert(grid, pixel);
            pixel.copy_from_slice(&converted);
        }
        let (pixels, width, height) = rotate(pixels, width, height, turns);
        let jpeg = jpeg::encode(&pixels, width, height, false)?;
        Ok(Processed {
            jpeg,
            pixels,
            width,
            height,
        })
    }
}

struct Processed {
    jpeg: Vec<u8>,
    pixels: Vec<u8>,
    width: usize,
    height: usize,
}

impl Workload for ImageRotate {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let (width, height) = (parameters.size(0), parameters.size(1));
        let upload = jpeg::encode(
            &draw_image(parameters.seed, width, height),
            width,
            height,
            false,
        )?;
        let image = self.process(&upload, parameters.size(2))?;
        let means = cell_means(&image.pixels, image.width, image.height);
        Ok(fields([
            ("upload_sha256", Value::from(sha256_hex(&upload))),
            ("width", Value::from(image.width)),
            ("height", Value::from(image.height)),
            ("cell_means_tenths", Value::from(means)),
            ("jpeg_bytes", Value::from(image.jpeg.len())),
            ("jpeg_sha256", Value::from(sha256_hex(&image.jpeg))),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_quarter_turns_are_none() {
        let pixels = draw_image(3, 20, 16);
        let mut turned = (pixels.clone(), 20, 16);
        for step in 1..=4 {
            turned = rotate(turned.0, turned.1, turned.2, 1);
            let expected = rotate(pixels.clone(), 20, 16, step % 4);
            assert_eq!(turned, expected, "{step}");
        }
    }

    #[test]
    fn a_quarter_turn_moves_the_upper_left_corner_to_the_upper_right() {
        let mut pixels = vec![0u8; 3 * 2 * 3];
        pixels[..3].copy_from_slice(&[9, 8, 7]);
        let (rotated, width, height) = rotate(pixels, 3, 2, 1);
        assert_eq!((width, height), (2, 3));
        assert_eq!(rotated[3..6], [9, 8, 7]);
    }

    #[test]
    fn the_new_jpeg_shows_the_rotated_pixels() {
        let profiles = (0..=OUTPUT_PROFILE).map(|profile| {
            (0..GRID * GRID)
                .map(|row| GridRow {
                    intents: core::array::from_fn(|intent| draw_grid_row(profile, intent, row)),
                })
                .collect()
        });
        let function = ImageRotate {
            profiles: profiles.collect(),
        };
        let upload = jpeg::encode(&draw_image(1, 240, 180), 240, 180, false).unwrap();
        let image = function.process(&upload, 1).unwrap();
        let (decoded, width, height) = jpeg::decode(&image.jpeg).unwrap();
        assert_eq!((width, height), (180, 240));
        let shown = cell_means(&decoded, width, height);
        for (shown, made) in shown.iter().zip(cell_means(&image.pixels, width, height)) {
            assert!(shown.abs_diff(made) < 40, "{shown} {made}");
        }
    }
}
