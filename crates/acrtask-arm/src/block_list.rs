//! Lists of blocks that complete an upload.

use quick_xml::{Reader, events::Event};

/// Most blocks of an upload.
const MAX_BLOCKS: usize = 10_000;
/// Longest id of a block, in characters of base 64.
const MAX_ID: usize = 128;

/// Reasons why a body is not a list of blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockListError {
    /// The body is not XML.
    #[error("the body is not a list of blocks: {0}")]
    Invalid(String),
    /// The list has too many blocks.
    #[error("the list has more than {MAX_BLOCKS} blocks: send larger blocks")]
    TooLong,
    /// A block occurs twice.
    #[error("the list contains the block `{0}` twice")]
    Repeated(String),
}

/// Returns the ids of the blocks, in the order of the list.
///
/// # Errors
/// Returns an error if the body is not a list of distinct blocks.
pub fn parse_block_list(body: &str) -> Result<Vec<String>, BlockListError> {
    let invalid = |reason: &str| BlockListError::Invalid(reason.to_owned());
    let mut reader = Reader::from_str(body);
    let (mut blocks, mut seen) = (Vec::new(), std::collections::HashSet::new());
    let (mut depth, mut text) = (0_usize, None::<String>);
    loop {
        match reader.read_event() {
            Err(error) => return Err(BlockListError::Invalid(error.to_string())),
            Ok(Event::Start(element)) => {
                depth += 1;
                let name = element.local_name();
                match (depth, name.as_ref()) {
                    (1, b"BlockList") => {}
                    (2, b"Latest" | b"Uncommitted" | b"Committed") => text = Some(String::new()),
                    _ => return Err(invalid("write <BlockList><Latest>ID</Latest></BlockList>")),
                }
            }
            Ok(Event::Text(more)) => {
                if let Some(text) = &mut text {
                    let more = more.decode().map_err(|error| invalid(&error.to_string()))?;
                    text.push_str(&more);
                }
            }
            Ok(Event::End(_)) => {
                depth = depth.saturating_sub(1);
                if let Some(id) = text.take() {
                    let id = id.trim().to_owned();
                    if !is_block_id(&id) {
                        return Err(invalid("an id of a block is not base 64"));
                    }
                    if blocks.len() == MAX_BLOCKS {
                        return Err(BlockListError::TooLong);
                    }
                    if !seen.insert(id.clone()) {
                        return Err(BlockListError::Repeated(id));
                    }
                    blocks.push(id);
                }
            }
            Ok(Event::Eof) => break,
            Ok(Event::Decl(_) | Event::Comment(_)) => {}
            Ok(_) => return Err(invalid("it contains more than elements and text")),
        }
    }
    if blocks.is_empty() {
        return Err(invalid("it contains no block"));
    }
    Ok(blocks)
}

/// Returns `true` if `text` can be the id of a block.
pub fn is_block_id(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"+/=-_".contains(&b);
    !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_order() {
        let body = "<?xml version='1.0' encoding='utf-8'?>\n<BlockList><Latest>Yg==</Latest>\
                    <Uncommitted>YQ==</Uncommitted></BlockList>";
        assert_eq!(parse_block_list(body).unwrap(), ["Yg==", "YQ=="]);
    }

    #[test]
    fn other_documents_are_refused() {
        let many: String = (0..=MAX_BLOCKS)
            .map(|n| format!("<Latest>{n}</Latest>"))
            .collect();
        for body in [
            "",
            "no xml",
            "<BlockList></BlockList>",
            "<BlockList><Latest>a b</Latest></BlockList>",
            "<BlockList><Latest>YQ==</Latest><Latest>YQ==</Latest></BlockList>",
            "<!DOCTYPE x [<!ENTITY a 'b'>]><BlockList><Latest>&a;</Latest></BlockList>",
            "<a><BlockList><Latest>YQ==</Latest></BlockList></a>",
            "<BlockList><Latest>YQ==",
            &format!("<BlockList>{many}</BlockList>"),
        ] {
            assert!(
                parse_block_list(body).is_err(),
                "{}",
                body.get(..80).unwrap_or(body)
            );
        }
    }
}
