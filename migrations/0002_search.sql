-- Trigrams of distinct targets that are TEXT. Without positions and without the text
-- itself: what it finds is compared with the pattern anyway. It is filled in the wake of
-- the fold; a target above search.indexed is not in it yet.
CREATE VIRTUAL TABLE trigrams USING fts5 (text, content = '', detail = 'none', columnsize = 0, tokenize = 'trigram');
CREATE TABLE search (indexed INTEGER NOT NULL);
INSERT INTO search VALUES (0);
