//! The description of this interface for people: one page at `/docs`.
//!
//! It is made from the same document that programs read, once, when it is first asked for. It has
//! no script and loads nothing from elsewhere, so it works where there is no other network. Its
//! anchors are stable: the `type` of every problem leads to one.

use std::{fmt::Write, sync::LazyLock};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::Value;

use super::openapi::{self, DOCUMENT};

static PAGE: LazyLock<Bytes> = LazyLock::new(|| page(&DOCUMENT).into());

/// Styles only, and those from the page itself.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// `GET /docs`.
pub(super) async fn show() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, PAGE.clone()).into_response()
}

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0b62b4; }
@media (prefers-color-scheme: dark) { :root { --accent: #7cb8f5; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin-top: 0 } h2 { border-bottom: 1px solid var(--line); padding-top: 1.5rem }
a { color: var(--accent) }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0 }
summary { padding: .55rem .8rem; cursor: pointer; overflow-wrap: anywhere }
details > div { padding: 0 .9rem .7rem }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; font-size: .85rem }
.what { opacity: .75; margin-left: .6rem }
code, pre { font: .9rem/1.45 ui-monospace, monospace; background: var(--soft); border-radius: .25rem }
code { padding: .1rem .25rem } pre { padding: .7rem; overflow-x: auto }
.table { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line) }
nav a { margin-right: 1rem }
:target { outline: 2px solid var(--accent); outline-offset: .4rem; border-radius: .25rem }
";

fn page(document: &Value) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut page, document);
    page
}

fn draw(page: &mut String, document: &Value) -> std::fmt::Result {
    let info = &document["info"];
    write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title} HTTP interface</title><style>{STYLE}</style>\
         <h1>{title} HTTP interface <small>{version}</small></h1><p>{description}</p><nav>",
        title = text(&info["title"]),
        version = text(&info["version"]),
        description = prose(&info["description"]),
    )?;
    let tags = document["tags"].as_array().map_or(&[][..], Vec::as_slice);
    for tag in tags {
        write!(page, "<a href=\"#{name}\">{name}</a>", name = text(&tag["name"]))?;
    }
    page.push_str(
        "<a href=\"#problems\">Problems</a><a href=\"#schemas\">Schemas</a>\
         <a href=\"/openapi.json\">openapi.json</a></nav><main>",
    );
    for tag in tags {
        write!(
            page,
            "<h2 id=\"{name}\">{name}</h2><p>{description}</p>",
            name = text(&tag["name"]),
            description = prose(&tag["description"]),
        )?;
        for (path, methods) in object(&document["paths"]) {
            for (method, operation) in object(methods) {
                if operation["tags"][0] == tag["name"] {
                    draw_operation(page, document, path, method, operation)?;
                }
            }
        }
    }
    page.push_str(
        "<h2 id=\"problems\">Problems</h2><p>Every error is a document of the type \
                   <code>application/problem+json</code>. Its <code>type</code> leads here.</p>\
                   <div class=\"table\"><table><tr><th>Type<th>Status<th>Meaning",
    );
    for (link, kind) in openapi::problems() {
        write!(
            page,
            "<tr id=\"{id}\"><td><a href=\"#{id}\">{title}</a><td>{status}<td>{meaning}",
            id = escape(link.trim_start_matches("/docs#")),
            title = escape(kind.title()),
            status = kind.status().as_u16(),
            meaning = prose(&Value::from(kind.meaning().trim())),
        )?;
    }
    page.push_str("</table></div><h2 id=\"schemas\">Schemas</h2>");
    for (name, schema) in object(&document["components"]["schemas"]) {
        write!(page, "<details id=\"schema-{0}\"><summary>{0}</summary><div>", escape(name))?;
        if !schema["description"].is_null() {
            write!(page, "<p>{}</p>", prose(&schema["description"]))?;
        }
        if object(&schema["properties"]).next().is_some() {
            page.push_str("<div class=\"table\"><table><tr><th>Field<th>Form<th>Meaning");
            let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
            for (field, form) in object(&schema["properties"]) {
                let needed = required.iter().any(|name| name == field);
                write!(
                    page,
                    "<tr><td><code>{}</code>{}<td>{}<td>{}",
                    escape(field),
                    if needed { " needed" } else { "" },
                    shape(form),
                    prose(&form["description"]),
                )?;
            }
            page.push_str("</table></div>");
        } else {
            write!(page, "<p>{}</p>", shape(schema))?;
        }
        page.push_str("</div></details>");
    }
    page.push_str("</main></html>\n");
    Ok(())
}

fn draw_operation(
    page: &mut String,
    document: &Value,
    path: &str,
    method: &str,
    operation: &Value,
) -> std::fmt::Result {
    write!(
        page,
        "<details id=\"{id}\"><summary><span class=\"method\">{method}</span><code>{path}</code>\
         <span class=\"what\">{summary}</span></summary><div><p>{description}</p>",
        id = text(&operation["operationId"]),
        method = escape(&method.to_ascii_uppercase()),
        path = escape(path),
        summary = text(&operation["summary"]),
        description = prose(&operation["description"]),
    )?;
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        page.push_str("<div class=\"table\"><table><tr><th>Parameter<th>In<th>Form<th>Meaning");
        for parameter in parameters.iter().map(|parameter| follow(document, parameter)) {
            write!(
                page,
                "<tr><td><code>{}</code>{}<td>{}<td>{}<td>{}",
                text(&parameter["name"]),
                if parameter["required"] == true { " needed" } else { "" },
                text(&parameter["in"]),
                shape(&parameter["schema"]),
                prose(&parameter["description"]),
            )?;
        }
        page.push_str("</table></div>");
    }
    for (content_type, content) in object(&operation["requestBody"]["content"]) {
        write!(
            page,
            "<p>Body <code>{}</code> {}</p>",
            escape(content_type),
            shape(&content["schema"])
        )?;
        draw_example(page, &content["example"])?;
    }
    page.push_str("<div class=\"table\"><table><tr><th>Answer<th>Meaning");
    for (status, answer) in object(&operation["responses"]) {
        write!(page, "<tr><td>{}<td>{}", escape(status), prose(&answer["description"]))?;
        for (content_type, content) in object(&answer["content"]) {
            if !content_type.contains("problem") {
                write!(
                    page,
                    " <code>{}</code> {}",
                    escape(content_type),
                    shape(&content["schema"])
                )?;
                draw_example(page, &content["example"])?;
            }
        }
        let names: Vec<_> = object(&answer["headers"]).map(|(name, _)| escape(name)).collect();
        if !names.is_empty() {
            write!(page, "<br><small>Headers: {}</small>", names.join(", "))?;
        }
    }
    page.push_str("</table></div></div></details>");
    Ok(())
}

fn draw_example(page: &mut String, example: &Value) -> std::fmt::Result {
    match example {
        Value::Null => Ok(()),
        Value::String(text) => write!(page, "<pre>{}</pre>", escape(text)),
        other => {
            let text = serde_json::to_string_pretty(other).unwrap_or_default();
            write!(page, "<pre>{}</pre>", escape(&text))
        }
    }
}

/// What a value looks like, in a few words.
fn shape(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escape(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for choice in ["oneOf", "anyOf", "allOf"] {
        if let Some(list) = schema[choice].as_array() {
            return list.iter().map(shape).collect::<Vec<_>>().join(" or ");
        }
    }
    let mut words = Vec::new();
    match &schema["type"] {
        Value::String(kind) if kind == "array" => {
            words.push(format!("list of {}", shape(&schema["items"])));
        }
        Value::String(kind) => words.push(escape(kind)),
        Value::Array(kinds) => {
            let kinds = kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null");
            words.push(kinds.map(escape).collect::<Vec<_>>().join(" or "));
        }
        _ => {}
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().map(|value| format!("<code>{}</code>", text(value)));
        words.push(values.collect::<Vec<_>>().join(", "));
    }
    for (name, word) in [
        ("format", ""),
        ("minimum", "from "),
        ("maximum", "to "),
        ("maxLength", "length to "),
        ("default", "default "),
    ] {
        // The format of a number is that of a language, not its own.
        let is_told = name != "format" || schema["type"] == "string";
        if is_told && !schema[name].is_null() {
            words.push(format!("{word}{}", text(&schema[name])));
        }
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        words.push(format!("<code>{}</code>", escape(pattern)));
    }
    words.retain(|word| !word.is_empty());
    words.join(", ")
}

fn follow<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let reference = value["$ref"].as_str().and_then(|text| text.strip_prefix('#'));
    reference.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text),
        Value::Null => String::new(),
        other => escape(&other.to_string()),
    }
}

/// Text with `code` in it.
fn prose(value: &Value) -> String {
    let mut prose = String::new();
    for (number, part) in text(value).split('`').enumerate() {
        if number % 2 == 1 {
            prose += &format!("<code>{part}</code>");
        } else {
            prose += part;
        }
    }
    prose
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Kind;

    #[test]
    fn the_page_has_a_place_for_every_problem_and_every_operation() {
        let page = page(&DOCUMENT);
        for kind in Kind::ALL {
            assert!(page.contains(&format!("id=\"problem-{}\"", kind.slug())), "{kind:?}");
        }
        for (path, methods) in object(&DOCUMENT["paths"]) {
            for (_, operation) in object(methods) {
                let id = operation["operationId"].as_str().unwrap();
                assert!(page.contains(&format!("<details id=\"{id}\">")), "{path}");
            }
        }
        assert!(!page.contains("<script") && !page.contains("src="));
    }

    #[test]
    fn what_a_description_says_cannot_become_markup() {
        assert_eq!(
            prose(&Value::from("a <b> `x&y` \"q\"")),
            "a &lt;b&gt; <code>x&amp;y</code> &quot;q&quot;"
        );
    }
}
