CREATE TABLE page_views (path text PRIMARY KEY, views bigint NOT NULL);
CREATE TABLE profiles (id bigint PRIMARY KEY, name text NOT NULL CHECK (name <> ''), version bigint NOT NULL);
CREATE TABLE events (number bigserial, id text PRIMARY KEY, user_id bigint NOT NULL, name text NOT NULL CHECK (name <> ''));
