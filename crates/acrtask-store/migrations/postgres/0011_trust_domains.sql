-- What a run may share with other runs: the key of acrtask-model's TrustDomain. Runs from before get the domain of their task;
-- those that waited for an approval, and those without a task, share nothing with any other run.
ALTER TABLE runs ADD COLUMN trust_domain TEXT NOT NULL DEFAULT '';
UPDATE runs SET trust_domain = CASE
    WHEN task_id IS NULL THEN '{"kind":"principal","by":{"kind":"token","id":"of run ' || id || '"}}'
    WHEN approval IS NOT NULL THEN '{"kind":"contribution","of":{"kind":"task","id":"' || task_id || '"},"source":"' || id || '"}'
    ELSE '{"kind":"task","id":"' || task_id || '"}' END;

-- The key of acrtask-model's Principal who uploaded the files, and who alone may use them. Empty: nobody any more.
ALTER TABLE contexts ADD COLUMN owner TEXT NOT NULL DEFAULT '';
DROP INDEX contexts_digest;
CREATE INDEX contexts_digest ON contexts (digest, size, owner) WHERE complete = 1;

-- The issuer of the identity token that a token was exchanged for; with the subject, its principal.
ALTER TABLE tokens ADD COLUMN issuer TEXT;
