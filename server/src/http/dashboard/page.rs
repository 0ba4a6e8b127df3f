//! The page itself: markup, style and script, put together once into one document.
//!
//! They are files of their own for those who edit them and one answer for those who look: no
//! second request can fail, and the policy need only name two hashes. A browser that has the page
//! already asks with its `ETag` and is answered 304.

use std::sync::{Arc, LazyLock};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::sampler::Dashboard;

const MARKUP: &str = include_str!("assets/page.html");
const STYLE: &[&str] = &[
    include_str!("assets/colors.css"),
    include_str!("assets/layout.css"),
    include_str!("assets/parts.css"),
];
const SCRIPT: &[&str] = &[
    include_str!("assets/basics.js"),
    include_str!("assets/model.js"),
    include_str!("assets/chart.js"),
    include_str!("assets/table.js"),
    include_str!("assets/map.js"),
    include_str!("assets/sections.js"),
    include_str!("assets/streams.js"),
    include_str!("assets/keys.js"),
    include_str!("assets/feed.js"),
    include_str!("assets/main.js"),
];

/// Where style and script go in the markup.
const STYLE_PLACE: &str = "<style></style>";
const SCRIPT_PLACE: &str = "<script type=\"module\"></script>";

static PAGE: LazyLock<Page> = LazyLock::new(Page::assemble);

struct Page {
    document: Bytes,
    policy: String,
    tag: String,
}

impl Page {
    fn assemble() -> Self {
        let (style, script) = (STYLE.concat(), SCRIPT.concat());
        let document = MARKUP
            .replacen(STYLE_PLACE, &format!("<style>{style}</style>"), 1)
            .replacen(SCRIPT_PLACE, &format!("<script type=\"module\">{script}</script>"), 1);
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            source_hash(&script),
            source_hash(&style),
        );
        let tag = format!("\"{}\"", &BASE64_STANDARD.encode(Sha256::digest(&document))[..22]);
        Self { document: document.into(), policy, tag }
    }
}

/// How a policy names a piece of a document.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

/// `GET /`.
pub(super) async fn show(State(_): State<Arc<Dashboard>>, request: HeaderMap) -> Response {
    let page = &*PAGE;
    let known = request.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let is_known = known.is_some_and(|tags| {
        tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == page.tag)
    });
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.document.clone())
            .into_response()
    };
    let headers: [(HeaderName, &str); 7] = [
        (header::CONTENT_SECURITY_POLICY, &page.policy),
        (header::ETAG, &page.tag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in headers {
        // Hashes and constants are all visible ASCII.
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> String {
        String::from_utf8(PAGE.document.to_vec()).unwrap()
    }

    fn between<'a>(text: &'a str, open: &str, close: &str) -> &'a str {
        let start = text.find(open).unwrap() + open.len();
        &text[start..start + text[start..].find(close).unwrap()]
    }

    #[test]
    fn the_policy_names_the_style_and_the_script_that_are_in_the_page() {
        let document = document();
        let script = between(&document, "<script type=\"module\">", "</script>");
        let style = between(&document, "<style>", "</style>");
        assert_eq!(script, SCRIPT.concat());
        assert!(PAGE.policy.contains(&format!("script-src '{}'", source_hash(script))));
        assert!(PAGE.policy.contains(&format!("style-src '{}'", source_hash(style))));
        assert!(!PAGE.policy.contains("unsafe"));
    }

    #[test]
    fn nothing_in_the_page_needs_what_the_policy_forbids() {
        let document = document();
        for forbidden in [
            " style=",
            " onclick=",
            " onload=",
            "javascript:",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "@import",
            "url(http",
            "src=\"http",
            "href=\"http",
        ] {
            assert!(!document.contains(forbidden), "{forbidden}");
        }
        assert_eq!(document.matches("<script").count(), 1);
        assert_eq!(document.matches("<style").count(), 1);
    }

    #[test]
    fn the_page_is_small() {
        assert!(PAGE.document.len() < 160 << 10, "{} bytes", PAGE.document.len());
    }
}
