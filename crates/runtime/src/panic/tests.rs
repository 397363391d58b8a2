use std::time::Duration;

use tokio::time::Instant;

use super::*;

#[test]
fn names_are_words_and_each_is_there_once() {
    for (at, boundary) in Boundary::ALL.iter().enumerate() {
        assert_eq!(*boundary as usize, at, "records are found by number");
        let name = boundary.name();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        assert_eq!(Boundary::ALL.iter().filter(|b| b.name() == name).count(), 1, "{name}");
    }
}

#[test]
fn the_architecture_lists_every_boundary_with_what_a_panic_costs() {
    let page = include_str!("../../../../ARCHITECTURE.md");
    for boundary in Boundary::ALL {
        let role = format!("{:?}", boundary.role()).to_lowercase();
        let row = format!("| `{}` | {role} | {} |", boundary.name(), boundary.costs());
        assert!(page.contains(&row), "{row}");
    }
}

#[test]
fn a_panic_is_an_error_with_its_words() {
    let caught = Boundary::Download.catch(|| -> u8 { panic!("number {}", 7) }).unwrap_err();
    assert_eq!(caught.boundary(), Boundary::Download);
    assert!(caught.to_string().ends_with("number 7"), "{caught}");
    assert_eq!(Boundary::Download.catch(|| 7), Ok(7));
    let standing = PartHealth::of(Boundary::Download);
    assert!(standing.panics >= 1 && standing.trouble.unwrap().contains("number 7"));
}

#[tokio::test(start_paused = true)]
async fn a_task_begins_anew_after_pauses_that_grow() {
    let began = Instant::now();
    let mut starts = Vec::new();
    let task = || {
        starts.push(began.elapsed().as_secs());
        let last = starts.len() == 6;
        async move { assert!(last, "it breaks") }
    };
    Boundary::Budget.keep(task).await;
    assert_eq!(starts, [0, 1, 6, 21, 81, 141]);
    Boundary::Budget.works();
    assert_eq!(PartHealth::of(Boundary::Budget).trouble, None);
    assert!(PartHealth::of(Boundary::Budget).panics >= 5, "it is still counted");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_lasted_begins_at_the_shortest_pause() {
    let began = Instant::now();
    let mut starts = Vec::new();
    let task = || {
        starts.push(began.elapsed().as_secs());
        let at = starts.len();
        async move {
            if at == 3 {
                tokio::time::sleep(Duration::from_secs(100)).await;
            }
            assert!(at == 4, "it breaks");
        }
    };
    Boundary::Spans.keep(task).await;
    assert_eq!(starts, [0, 1, 6, 107]);
}

#[tokio::test]
async fn a_panic_on_a_blocking_thread_is_caught_there() {
    let caught = Boundary::Prepare.aside(|| -> () { panic!("there") }).await.unwrap_err();
    assert!(caught.to_string().ends_with("there"), "{caught}");
}

#[test]
fn a_wish_for_panics_that_makes_no_sense_is_refused() {
    let error = inject("pass,nowhere").unwrap_err();
    assert!(error.to_string().contains("`nowhere`; they are pass, states,"), "{error}");
    for wish in ["pass*x", "pass@*2", "pass@1*"] {
        assert_eq!(inject(wish), Err(InjectError::Malformed(wish.into())), "{wish}");
    }
}
