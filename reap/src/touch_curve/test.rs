use proptest::prelude::*;

use super::*;

fn curve(points: &[(u64, u64)]) -> TouchCurve {
    let points = points_of(points);
    TouchCurve::from_points(points, u64::MAX).unwrap()
}

fn points_of(points: &[(u64, u64)]) -> Vec<CurvePoint> {
    points
        .iter()
        .map(|&(page, own_ns)| CurvePoint { page, own_ns })
        .collect()
}

fn of_times(times: impl IntoIterator<Item = u64>) -> TouchCurve {
    let times: Vec<_> = times.into_iter().map(Some).collect();
    TouchCurve::of_pages(&times).unwrap()
}

const MS: u64 = 1_000_000;
/// A rate of 4 us a page.
const RATE: (u64, u64) = (100, 400_000);

#[test]
fn a_guest_that_computes_first_needs_no_lead_and_one_that_touches_all_at_once_nearly_all() {
    let late = of_times((0..1000).map(|page| 10 * MS + page * 500));
    assert_eq!(late.lead_pages(1000, RATE.0, RATE.1), 0);
    let slow = of_times((0..1000).map(|page| page * 5000 + 4000));
    assert_eq!(slow.lead_pages(1000, RATE.0, RATE.1), 0);
    let at_once = of_times((0..1000).map(|_| 0));
    assert_eq!(at_once.lead_pages(1000, RATE.0, RATE.1), 1000);
    // 0.5 us from page to page, 4 to bring one: an eighth comes meanwhile.
    let quick = of_times((0..1000).map(|page| page * 500));
    assert_eq!(quick.lead_pages(1000, RATE.0, RATE.1), 1000 - 124);
}

#[test]
fn the_page_that_is_hardest_to_bring_in_time_decides() {
    // 100 pages at once, computing, 300 at once, computing, the rest at once.
    let times = (0..1000_u64).map(|page| match page {
        0..100 => 0,
        100..400 => 800_000,
        _ => 2 * MS,
    });
    let curve = of_times(times);
    // By 0.8 ms 200 come, by 2 ms 500: 400 - 200 and 1000 - 500.
    assert_eq!(curve.lead_pages(1000, RATE.0, RATE.1), 500);
    assert_eq!(curve.lead_pages(500, RATE.0, RATE.1), 200);
    assert_eq!(curve.lead_pages(0, RATE.0, RATE.1), 0);
    // Twice as fast: 400 and 1000 come by then, and the first 100 are needed at once.
    assert_eq!(curve.lead_pages(1000, RATE.0 * 2, RATE.1), 100);
}

#[test]
fn a_rate_of_which_nothing_is_known_brings_nothing_and_none_overflows() {
    let late = curve(&[(0, MAX_OWN_NS), (u64::MAX - 1, MAX_OWN_NS)]);
    assert_eq!(late.lead_pages(1000, 0, 5), 1000);
    assert_eq!(late.lead_pages(1000, 7, 0), 0);
    assert_eq!(
        late.lead_pages(u64::MAX, u64::MAX, u64::MAX),
        u64::MAX - MAX_OWN_NS
    );
    assert_eq!(late.lead_pages(u64::MAX, u64::MAX, 1), 0);
}

#[test]
fn a_late_page_before_an_early_one_is_needed_when_the_early_one_is() {
    let curve = of_times([0, 900, 100, 300, 200, 400]);
    let needed: Vec<u64> = (0..6).map(|page| curve.own_ns_at(page)).collect();
    assert_eq!(needed, [0, 100, 100, 200, 200, 400]);
    // What is not known is between what is known around it.
    let times = [None, Some(100), None, Some(300), None];
    let curve = TouchCurve::of_pages(&times).unwrap();
    let needed: Vec<u64> = (0..6).map(|page| curve.own_ns_at(page)).collect();
    assert_eq!(needed, [100, 100, 200, 300, 300, 300]);
    assert_eq!(TouchCurve::of_pages(&[None, None]), None);
    assert_eq!(TouchCurve::of_pages(&[]), None);
}

#[test]
fn points_that_are_no_curve_are_refused() {
    let refused = |points: &[(u64, u64)], pages| {
        TouchCurve::from_points(points_of(points), pages).unwrap_err()
    };
    assert_eq!(refused(&[], 5), CurveError::Beginning);
    assert_eq!(refused(&[(1, 0)], 5), CurveError::Beginning);
    assert_eq!(refused(&[(0, 0), (0, 1)], 5), CurveError::Order { page: 0 });
    assert_eq!(
        refused(&[(0, 0), (3, 9), (2, 9)], 5),
        CurveError::Order { page: 2 }
    );
    assert_eq!(refused(&[(0, 9), (2, 8)], 5), CurveError::Order { page: 2 });
    assert_eq!(
        refused(&[(0, 0)], 0),
        CurveError::NoSuchPage { page: 0, pages: 0 }
    );
    assert_eq!(
        refused(&[(0, 0), (5, 1)], 5),
        CurveError::NoSuchPage { page: 5, pages: 5 }
    );
    let own_ns = MAX_OWN_NS + 1;
    assert_eq!(refused(&[(0, own_ns)], 5), CurveError::TooLate { own_ns });
    assert_eq!(
        refused(&[(0, u64::MAX)], 5),
        CurveError::TooLate { own_ns: u64::MAX }
    );
    let many: Vec<(u64, u64)> = (0..65).map(|page| (page, page)).collect();
    assert_eq!(refused(&many, 100), CurveError::TooMany { count: 65 });
    assert!(TouchCurve::from_points(points_of(&many[..64]), 100).is_ok());
}

proptest! {
    #[test]
    fn few_points_stay_near_the_times_and_are_a_curve(
        gaps in prop::collection::vec((0u64..20_000, 0u64..5), 1..2000),
    ) {
        let mut now = 0;
        let times: Vec<u64> = gaps
            .iter()
            .map(|&(ns, scale)| {
                now += ns * 10_u64.pow(scale as u32) / 1000;
                now
            })
            .collect();
        let curve = of_times(times.iter().copied());
        let pages = times.len() as u64;
        let again = TouchCurve::from_points(curve.points().to_vec(), pages);
        prop_assert_eq!(again.as_ref(), Ok(&curve));
        prop_assert_eq!(curve.own_ns_at(pages - 1), now);
        let worst = (0..pages).zip(&times).map(|(page, ns)| curve.own_ns_at(page).abs_diff(*ns));
        let worst = worst.max().unwrap();
        if times.len() <= MAX_POINTS {
            prop_assert_eq!(worst, 0);
        }
        // Each point halves the error at worst where it is: far less than the whole is left.
        prop_assert!(worst <= now / 16 + 1, "{} of {}", worst, now);
        // Of its points alone, it is itself.
        let points: Vec<Option<u64>> = (0..pages).map(|page| curve.point_at(page)).collect();
        prop_assert_eq!(points.iter().flatten().count(), curve.points().len());
        prop_assert_eq!(TouchCurve::of_pages(&points), Some(curve));
    }

    #[test]
    fn no_page_comes_late_with_the_lead_and_one_does_with_less(
        points in prop::collection::vec((1u64..300, 0u64..3_000_000), 0..40),
        first_ns in 0u64..1_000_000,
        more in 1u64..500,
        placed in 1u64..1000,
        ns_per_page in 1u64..20_000,
    ) {
        let mut at = (0, first_ns);
        let mut all = vec![at];
        for (pages, ns) in points {
            at = (at.0 + pages, at.1 + ns);
            all.push(at);
        }
        let pages = at.0 + more;
        let curve = curve(&all);
        let lead = curve.lead_pages(pages, placed, placed * ns_per_page);
        prop_assert!(lead <= pages);
        // Whether each page is there when it is needed, in whole pages.
        let is_enough = |lead: u64| {
            (0..pages).all(|page| page < lead + curve.own_ns_at(page) / ns_per_page)
        };
        // A time between two points is cut off to whole nanoseconds: a page at most.
        prop_assert!(is_enough(lead + 1), "{}", lead);
        prop_assert!(lead < 2 || !is_enough(lead - 1), "{}", lead);
    }
}
