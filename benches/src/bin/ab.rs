//! temp
#![allow(unsafe_code, missing_docs, clippy::all)]
use ndarray::Array4;
use sd_onnx::{Call, Pipeline, Request, StopToken, text::ClipSkip};
use std::time::Instant;
fn main() {
    let n: usize = std::env::args()
        .nth(1)
        .map_or(300, |n| n.parse().expect("n"));
    let load = |on: bool| -> Pipeline {
        if on {
            unsafe { std::env::set_var("MP", "1") }
        } else {
            unsafe { std::env::remove_var("MP") }
        }
        let p = sd_onnx::builder()
            .load(sd_benches::shipped_model())
            .expect("loads");
        let _ = p
            .codec()
            .encode(Array4::zeros((1, 3, 96, 96)).view(), &StopToken::new())
            .expect("enc");
        p
    };
    let ps = [load(false), load(true)];
    let prompt = ps[0]
        .prompt_encoder()
        .encode("a fox", ClipSkip::LAST)
        .expect("p");
    let latents = Array4::from_shape_fn((1, 4, 12, 12), |(_, c, y, x)| {
        ((c * 144 + y * 12 + x) as f32).sin()
    });
    let image = Array4::from_shape_fn((1, 3, 96, 96), |(_, c, y, x)| {
        ((c * 9216 + y * 96 + x) as f32).sin()
    });
    let request = Request::new("a fox").seed(1);
    let unguided = request.clone().guidance(1.0);
    let runs: [(&str, usize, Box<dyn Fn(&Pipeline)>); 5] = [
        (
            "unet",
            n,
            Box::new(|p| {
                let mut o = latents.clone();
                let s = StopToken::new();
                p.denoiser()
                    .predict(
                        &Call::new(latents.view(), 500.0, prompt.embedding.view(), &s),
                        o.view_mut(),
                    )
                    .expect("u")
            }),
        ),
        (
            "dec",
            n,
            Box::new(|p| {
                p.codec()
                    .decode(latents.view(), &StopToken::new())
                    .expect("d");
            }),
        ),
        (
            "enc",
            n,
            Box::new(|p| {
                p.codec()
                    .encode(image.view(), &StopToken::new())
                    .expect("d");
            }),
        ),
        (
            "7.5",
            n / 20,
            Box::new(|p| {
                p.generate(&request).expect("g");
            }),
        ),
        (
            "1",
            n / 20,
            Box::new(|p| {
                p.generate(&unguided).expect("g");
            }),
        ),
    ];
    for (name, n, f) in runs {
        let mut t = [vec![], vec![]];
        for i in 0..n {
            // ten in a row, as a loop does
            for k in if i % 2 == 0 { [0, 1] } else { [1, 0] } {
                f(&ps[k]);
                for _ in 0..3 {
                    let s = Instant::now();
                    f(&ps[k]);
                    t[k].push(s.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        for t in &mut t {
            t.sort_by(f64::total_cmp);
        }
        let q = |t: &Vec<f64>, p: f64| t[(t.len() as f64 * p) as usize];
        println!(
            "{name}: off min {:.1} q10 {:.1} q50 {:.1}; on/off min {:.4} q10 {:.4} q50 {:.4}",
            t[0][0],
            q(&t[0], 0.1),
            q(&t[0], 0.5),
            t[1][0] / t[0][0],
            q(&t[1], 0.1) / q(&t[0], 0.1),
            q(&t[1], 0.5) / q(&t[0], 0.5)
        );
    }
}
