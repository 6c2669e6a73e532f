//! The functions that work on pictures, with the decoder of the crate jpeg-decoder and in f64.

use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::{Case, near};
use crate::functions::image_rotate::{
    CELLS, GRID, OUTPUT_INTENT, OUTPUT_PROFILE, draw_grid_row, draw_image,
};
use crate::functions::jpeg;
use crate::functions::video_processing::{
    FRAME_STRIDE, HEIGHT, LISTED_FRAMES, WIDTH, draw_exposure, draw_frame,
};

/// How much the mean of an area may differ between two decoders, of 255: they round and
/// interpolate colours differently.
const DECODER_TOLERANCE: f64 = 1.5;

/// Decodes a JPEG of `width` and `height` to RGB.
fn decode(jpeg: &[u8], width: usize, height: usize) -> Result<Vec<u8>, String> {
    let mut decoder = jpeg_decoder::Decoder::new(jpeg);
    let pixels = decoder.decode().map_err(|error| error.to_string())?;
    let info = decoder.info().ok_or("a JPEG without a size")?;
    if (usize::from(info.width), usize::from(info.height)) != (width, height)
        || pixels.len() != width * height * 3
    {
        return Err(format!(
            "a JPEG of {}x{}, not {width}x{height}",
            info.width, info.height
        ));
    }
    Ok(pixels)
}

/// Checks a result of `image_rotate`.
pub(super) fn image_rotate(case: &Case<'_>) -> Result<(), String> {
    let (width, height, turns) = (case.sizes[0], case.sizes[1], case.sizes[2]);
    let upload = jpeg::encode(&draw_image(case.seed, width, height), width, height, false)
        .map_err(|error| error.to_string())?;
    case.expect_text("upload_sha256", &crate::digest::sha256_hex(&upload))?;
    let decoded = decode(&upload, width, height)?;
    let grid: Vec<_> = (0..GRID * GRID)
        .map(|row| draw_grid_row(OUTPUT_PROFILE, OUTPUT_INTENT, row))
        .collect();
    let converted: Vec<[f64; 3]> = decoded
        .chunks_exact(3)
        .map(|pixel| interpolate(&grid, pixel))
        .collect();

    let (new_width, new_height) = if turns.is_multiple_of(2) {
        (width, height)
    } else {
        (height, width)
    };
    case.expect_integer("width", new_width)?;
    case.expect_integer("height", new_height)?;
    // Where each pixel goes: turned about the middle, once for each quarter turn.
    let mut sums = vec![[0.0; 3]; CELLS * CELLS];
    let mut counts = vec![0.0; CELLS * CELLS];
    for (index, colour) in converted.iter().enumerate() {
        let (mut x, mut y, mut rows) = (index % width, index / width, height);
        let mut columns = width;
        for _ in 0..turns {
            (x, y) = (rows - 1 - y, x);
            (rows, columns) = (columns, rows);
        }
        let cell = y * CELLS / rows * CELLS + x * CELLS / columns;
        counts[cell] += 1.0;
        for channel in 0..3 {
            sums[cell][channel] += colour[channel];
        }
    }
    let found = case.numbers("cell_means_tenths", CELLS * CELLS * 3)?;
    for (index, tenths) in found.into_iter().enumerate() {
        let mean = sums[index / 3][index % 3] / counts[index / 3];
        near(
            format!("cell mean {index}"),
            tenths / 10.0,
            mean,
            DECODER_TOLERANCE,
        )?;
    }
    rotated_size(case, &converted, width, height, turns)
}

/// Expects about the size of the JPEG that the rotated colours make.
fn rotated_size(
    case: &Case<'_>,
    converted: &[[f64; 3]],
    width: usize,
    height: usize,
    turns: usize,
) -> Result<(), String> {
    let mut image: Vec<Vec<[u8; 3]>> = converted
        .chunks_exact(width)
        .map(|row| {
            row.iter()
                .map(|colour| colour.map(|value| value.round() as u8))
                .collect()
        })
        .collect();
    for _ in 0..turns {
        let columns = image[0].len();
        image = (0..columns)
            .map(|x| image.iter().rev().map(|row| row[x]).collect())
            .collect();
    }
    let (new_width, new_height) = if turns.is_multiple_of(2) {
        (width, height)
    } else {
        (height, width)
    };
    let pixels: Vec<u8> = image.concat().concat();
    let expected = jpeg::encode(&pixels, new_width, new_height, false)
        .map_err(|error| error.to_string())?
        .len() as f64;
    near(
        "jpeg_bytes",
        case.number("jpeg_bytes")?,
        expected,
        expected * 0.03,
    )
}

/// The colour that the profile gives `pixel`: the sum of eight grid points by their weights.
fn interpolate(grid: &[std::boxed::Box<[[f32; 3]]>], pixel: &[u8]) -> [f64; 3] {
    let steps = (GRID - 1) as f64;
    let scaled = [0, 1, 2].map(|channel| f64::from(pixel[channel]) * steps / 255.0);
    let base = scaled.map(|value| value.floor().min(steps - 1.0));
    let mut colour = [0.0; 3];
    for corner in 0..8usize {
        let mut weight = 1.0;
        let mut point = [0usize; 3];
        for channel in 0..3 {
            let part = scaled[channel] - base[channel];
            let upper = corner >> channel & 1;
            weight *= if upper == 1 { part } else { 1.0 - part };
            point[channel] = base[channel] as usize + upper;
        }
        let value = grid[point[0] * GRID + point[1]][point[2]];
        for channel in 0..3 {
            colour[channel] += weight * f64::from(value[channel]);
        }
    }
    colour
}

/// Checks a result of `video_processing`.
pub(super) fn video_processing(case: &Case<'_>) -> Result<(), String> {
    let frames = case.sizes[0];
    let (gain, offset) = draw_exposure(case.seed);
    case.expect_integer("frames", frames)?;
    let means = case.numbers("frame_means", frames.min(LISTED_FRAMES))?;
    let mut previous: Option<Vec<f64>> = None;
    let mut motion = 0.0;
    let mut encoded_bytes = 0;
    for index in 0..frames {
        let frame = draw_frame(index * FRAME_STRIDE);
        let stored =
            jpeg::encode(&frame, WIDTH, HEIGHT, false).map_err(|error| error.to_string())?;
        let grey: Vec<f64> = decode(&stored, WIDTH, HEIGHT)?
            .chunks_exact(3)
            .map(|pixel| {
                let [red, green, blue] = [0, 1, 2].map(|channel| f64::from(pixel[channel]));
                let luminance = 0.299 * red + 0.587 * green + 0.114 * blue;
                (luminance * f64::from(gain) / 256.0 + f64::from(offset)).min(255.0)
            })
            .collect();
        if let Some(found) = means.get(index) {
            let mean = grey.iter().sum::<f64>() / grey.len() as f64;
            near(
                format!("frame mean {index}"),
                *found,
                mean,
                DECODER_TOLERANCE,
            )?;
        }
        if let Some(previous) = previous {
            motion += previous
                .iter()
                .zip(&grey)
                .map(|(a, b)| (a - b).abs())
                .sum::<f64>();
        }
        let pixels: Vec<u8> = grey.iter().map(|value| value.round() as u8).collect();
        encoded_bytes += jpeg::encode(&pixels, WIDTH, HEIGHT, true)
            .map_err(|error| error.to_string())?
            .len();
        previous = Some(grey);
    }
    let motion = motion / (WIDTH * HEIGHT * frames) as f64;
    near("motion", case.number("motion")?, motion, DECODER_TOLERANCE)?;
    let expected = encoded_bytes as f64;
    near(
        "encoded_bytes",
        case.number("encoded_bytes")?,
        expected,
        expected * 0.03,
    )
}
