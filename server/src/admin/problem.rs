//! Errors as problem documents (RFC 9457).

use axum::{
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

/// There is nothing at this path.
pub(super) async fn not_found(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    document(StatusCode::NOT_FOUND, &format!("There is nothing at {path}."))
}

/// The path is there, but not for this method; `Allow` says for which.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(20).collect();
    document(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} does not know the method {method}."))
}

/// A fault of ours; the log says more.
pub(super) fn internal_error() -> Response {
    document(StatusCode::INTERNAL_SERVER_ERROR, "The node could not answer. Its log says why.")
}

fn document(status: StatusCode, detail: &str) -> Response {
    let document = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], document.to_string())
        .into_response()
}
