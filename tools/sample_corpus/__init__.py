"""Writers of English-like sample text, one module a domain. Each has write_document(writer) -> (title, text)."""
