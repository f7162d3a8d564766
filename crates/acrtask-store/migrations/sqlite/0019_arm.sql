-- Documents of the ARM API that no other table stores.
CREATE TABLE arm_documents (
    -- task, taskRun or run
    kind TEXT NOT NULL,
    registry TEXT NOT NULL,
    -- The name in lower case.
    key_name TEXT NOT NULL,
    name TEXT NOT NULL,
    task_id TEXT REFERENCES tasks (id) ON DELETE CASCADE,
    run_id TEXT REFERENCES runs (id) ON DELETE CASCADE,
    -- Generation of the task that the document describes.
    generation BIGINT NOT NULL,
    body TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (kind, registry, key_name)
) WITHOUT ROWID;
CREATE INDEX arm_documents_task ON arm_documents (task_id);
CREATE INDEX arm_documents_run ON arm_documents (run_id);

-- Blocks of uploads whose size is not announced. A completed context has none.
CREATE TABLE context_blocks (
    context_id TEXT NOT NULL REFERENCES contexts (id) ON DELETE CASCADE,
    -- Id that the client chose.
    block TEXT NOT NULL,
    length BIGINT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (context_id, block)
) WITHOUT ROWID;
