-- shop.sql fills the database with orders that depend on the variable seed only.
begin;
select setseed(1.0 / (1 + :seed));
create table word (id int primary key, w text);
insert into word
	select i, string_agg(substr('etaoinshrdlucmfwypvbgk', 1 + (22 * random() * random())::int, 1), '')
	from generate_series(0, 1999) i, generate_series(1, 4 + (i * 7919) % 7) group by i;
create table customer (
	id int primary key, name text, mail text, joined timestamptz, secret bytea, balance numeric(12,2));
insert into customer
	select i, a.w || ' ' || b.w, a.w || '.' || b.w || i || '@example.com',
		timestamptz '2020-01-01' + random() * interval '6 years',
		decode(md5(random()::text) || md5(random()::text), 'hex'), (random() * 100000)::numeric(12,2)
	from (select i, (random() * 1999)::int x, (random() * 1999)::int y from generate_series(1, 20000) i) r
	join word a on a.id = x join word b on b.id = y;
create table purchase (
	id bigserial primary key, customer int, token uuid, placed timestamptz, total numeric(10,2), state smallint, detail jsonb);
insert into purchase (customer, token, placed, total, state, detail)
	select 1 + (random() * 19999)::int, md5(random()::text)::uuid,
		timestamptz '2024-01-01' + i * interval '6 minutes' + random() * interval '1 hour',
		(random() * 1000)::numeric(10,2), (random() * 5)::int,
		jsonb_build_object('sku', 'A' || (random() * 9999)::int, 'count', 1 + (random() * 4)::int,
			'note', a.w || ' ' || b.w || ' ' || c.w, 'weight', round(random()::numeric * 30, 3), 'gift', random() < 0.1)
	from (select i, (random() * 1999)::int x, (random() * 1999)::int y, (random() * 1999)::int z
		from generate_series(1, 80000) i) r
	join word a on a.id = x join word b on b.id = y join word c on c.id = z;
create index on purchase (customer);
create index on purchase (token);
create index on purchase (placed);
commit;
analyze;
checkpoint;
