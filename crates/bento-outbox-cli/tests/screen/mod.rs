//! The dashboard in a browser, as a person uses it.

mod browser;

use serde_json::{Value, json};

use crate::admin::Asked;
use crate::api::full;
use crate::place::{Place, eventually};
use browser::Browser;

impl Browser {
    /// Opens the page of a relay.
    fn open(asked: &Asked, section: &str) -> Self {
        let browser = Self::start();
        browser.go(&format!("http://127.0.0.1:{}/{section}", asked.port));
        browser
    }

    fn text(&self, selector: &str) -> String {
        let text = self.run(
            "return document.querySelector(arguments[0])?.innerText ?? ''",
            json!([selector]),
        );
        text.as_str().unwrap().to_owned()
    }

    fn count(&self, selector: &str) -> u64 {
        self.run(
            "return document.querySelectorAll(arguments[0]).length",
            json!([selector]),
        )
        .as_u64()
        .unwrap()
    }

    #[track_caller]
    fn says(&self, selector: &str, said: &str) {
        eventually(|| self.text(selector).contains(said));
    }

    /// Presses the visible button with that text in it.
    #[track_caller]
    fn press(&self, within: &str, text: &str) {
        eventually(|| {
            let pressed = self.run(
                "const all = [...document.querySelectorAll(arguments[0] + ' button')]; \
                 const found = all.find((one) => one.innerText.startsWith(arguments[1]) && !one.disabled \
                   && one.checkVisibility()); \
                 found?.click(); return found !== undefined",
                json!([within, text]),
            );
            pressed == true
        });
    }

    fn fill(&self, selector: &str, text: &str) {
        self.run(
            "document.querySelector(arguments[0]).value = arguments[1]",
            json!([selector, text]),
        );
    }

    /// Nothing of what events say became part of the page, and the page broke no rule.
    #[track_caller]
    fn is_unharmed(&self) {
        assert_ne!(self.title(), "taken");
        assert_eq!(
            self.count("main img, main script, main b, main i, dialog img, dialog b"),
            0
        );
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

#[test]
fn the_page_shows_what_is_there_and_runs_nothing_of_it() {
    let asked = full(&[]);
    let browser = Browser::open(&asked, "");
    browser.says("#pulse", "ready");
    browser.says("#figures", "dead letters");
    browser.says("#tenants", "acme");
    browser.says("#destinations", "null:");
    browser.says("#relays", "all tenants");
    browser.says("#held", "No aggregate's events wait");
    assert_eq!(browser.title(), "(9) bento-outbox");
    browser.is_unharmed();

    browser.go_to("#dead");
    browser.says("#dead-found", "<b>bold</b>");
    browser.says(
        "#dead-found",
        "refused: <script>document.title='taken'</script>",
    );
    browser.says(
        "#dead-found",
        "\"><img src=x onerror=\"document.title='taken'\">",
    );
    assert_eq!(browser.count("#dead-found tbody tr"), 9);
    browser.press("#dead-found", "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6c000");
    browser.says("#detail", "It is a dead letter");
    browser.says("#detail", "<b>schema</b>");
    browser.says("#detail", "</style><script>");
    browser.is_unharmed();
    browser.press("#detail", "Close");
    browser.press("#dead-found", "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001");
    browser.says("#detail", "It is a dead letter");
    assert!(
        !browser.text("#detail").contains("1e400"),
        "no payload unless asked for"
    );
    browser.press("#detail", "Show the payload");
    browser.says(
        "#detail pre",
        r#"{"n":1e400,"text":"<script>document.title='taken'</script>"}"#,
    );
    browser.is_unharmed();
    // Even if the table took such names: they are put on the page as text.
    let put = browser.run(
        "const evil = '<img src=x onerror=document.title=\"taken\">'; \
         const row = { tenant_id: evil, new: 1, retrying: 0, sent: 0, dead: 1, sent_per_second: 0 }; \
         $('detail-body').replaceChildren(tenantTable([row], new Map([[evil, { since: evil, by: evil, reason: evil }]]), row)); \
         return $('detail-body').innerText",
        json!([]),
    );
    assert!(put.as_str().unwrap().contains("<img src=x"), "{put}");
    browser.is_unharmed();
}

#[test]
fn a_person_retries_discards_pauses_and_replays() {
    let asked = full(&[]);
    let browser = Browser::open(&asked, "#audit");
    browser.says("#audit-found", "Nobody has retried");
    browser.fill("#actor", "anna");
    browser.run("$('actor').dispatchEvent(new Event('change'))", json!([]));

    browser.go_to("#dead");
    browser.says("#dead-found", "order.placed");
    browser.run(
        "document.querySelector('[data-key=\"box-0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001\"]').click()",
        json!([]),
    );
    browser.press("#dead-actions", "Retry selected (1)");
    browser.says("#question", "Retry 1 dead letter?");
    browser.press("#question", "Cancel");
    assert_eq!(
        asked.place.status()["total"]["dead"],
        9,
        "asked, and not done"
    );
    browser.press("#dead-actions", "Retry selected (1)");
    browser.press("#question", "Retry");
    browser.says("#said", "1 dead letter retried");
    eventually(|| asked.place.status()["total"]["sent"] == 21);

    browser.fill("#dead-filter [name=tenant]", "acme");
    browser.press("#dead-filter", "Find");
    eventually(|| browser.count("#dead-found tbody tr") == 7);
    browser.press("#dead-actions", "Discard all that match");
    browser.says("#question", "Discard 7 dead letters?");
    browser.press("#question", "Discard for good");
    browser.says("#said", "7 dead letters discarded");
    browser.says("#dead-found", "No dead letter matches");
    assert_eq!(asked.place.status()["total"]["dead"], 1);

    browser.go_to("#overview");
    browser.press("#tenants", "Pause");
    browser.fill("#question-field input", "<b>asked to</b>");
    browser.press("#question", "Pause");
    browser.says("#tenants", "paused");
    assert_eq!(browser.count("#tenants b"), 0);
    eventually(|| asked.place.status()["tenants"][0]["paused"] == true);
    browser.press("#tenants", "Resume");
    browser.says("#question", "<b>asked to</b>");
    browser.press("#question", "Resume");
    eventually(|| asked.place.status()["tenants"][0]["paused"] == false);

    browser.go_to("#replay");
    browser.press("#replay-filter", "Count");
    browser.says("#trouble", "Which events?");
    browser.fill("#replay-filter [name=tenant]", "default");
    browser.press("#replay-filter", "Count");
    browser.says("#question", "Publish 20 events again?");
    browser.press("#question", "Publish again");
    browser.says("#replays", "done");
    browser.says("#replays", "20 of 20");

    browser.go_to("#audit");
    browser.says("#audit-found", "replay");
    browser.says("#audit-found", "api:anna@127.0.0.1");
    for verb in ["retry", "discard", "pause", "resume"] {
        browser.says("#audit-found", verb);
    }
    browser.is_unharmed();
}

#[test]
fn the_page_asks_for_the_token_and_keeps_it_in_its_tab() {
    let asked = full(&[("OUTBOX_ADMIN_TOKEN", "s3cret-enough")]);
    let browser = Browser::open(&asked, "#dead");
    browser.says("#door", "admin_token");
    assert_eq!(browser.text("#dead-found"), "");
    browser.fill("#door input", "another");
    browser.press("#door", "Show");
    browser.says("#trouble", "the token is not the one of admin_token");
    browser.fill("#door input", "s3cret-enough");
    browser.press("#door", "Show");
    browser.says("#dead-found", "order.placed");
    let kept = browser.run(
        "return [localStorage.length, document.cookie, location.href, sessionStorage.length]",
        json!([]),
    );
    let kept: Vec<Value> = kept.as_array().unwrap().clone();
    assert_eq!(
        (&kept[0], &kept[1], &kept[3]),
        (&json!(0), &json!(""), &json!(1))
    );
    assert!(!kept[2].as_str().unwrap().contains("s3cret"));
    browser.press("header", "Forget token");
    browser.says("#door", "admin_token");
}

#[test]
fn nothing_and_no_answer_are_said_in_words() {
    let asked = Asked::at(Place::migrated(), "null:", &[]);
    let browser = Browser::open(&asked, "");
    browser.says("#tenants", "The outbox is empty");
    for (section, place, said) in [
        ("#events", "#events-found", "The outbox has no events."),
        ("#dead", "#dead-found", "There are no dead letters"),
        ("#replay", "#replays", "Nothing was replayed"),
        ("#audit", "#audit-found", "Nobody has retried"),
    ] {
        browser.go_to(section);
        browser.says(place, said);
    }
    browser.go_to("#events");
    browser.fill("#events-filter [name=since]", "soon");
    browser.press("#events-filter", "Find");
    browser.says("#trouble", "\"soon\" under \"Written since\" is no time");
    browser.fill("#events-filter [name=since]", "2h");
    browser.press("#events-filter", "Find");
    browser.says("#events-found", "No event matches");
    browser.is_unharmed();
    drop(asked);
    browser.run("$('refresh').click()", json!([]));
    browser.says("#away", "The relay does not answer");
}
