# records.pl SEED COUNT writes Redis commands: sessions as JSON, counters, and
# bytes nobody can compress, as small pictures are.
use strict;
use warnings;
my ($seed, $count) = @ARGV;
srand($seed);
my @words = map { join '', map { substr 'etaoinshrdlucmfwypvbgk', rand() * rand() * 22, 1 } 1 .. 3 + rand 8 } 1 .. 3000;
sub command { print '*', scalar @_, "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @_ }
open my $urandom, '<:raw', '/dev/urandom' or die $!;
sub noise { read $urandom, my $b, $_[0]; $b }
for my $i (1 .. $count) {
	my $kind = $i % 10;
	if ($kind < 6) {
		my $basket = join ',', map { sprintf '{"sku":"A%04d","n":%d,"price":%.2f}', rand 9999, 1 + rand 4, rand 500 } 1 .. 1 + rand 6;
		command('SET', sprintf('session:%08x', rand 2**32), sprintf '{"user":%d,"name":"%s %s","seen":%d,"token":"%s","basket":[%s],"agent":"%s"}',
			rand 20000, $words[rand @words], $words[rand @words], 1700000000 + rand 3e7, unpack('H*', noise(16)), $basket,
			join ' ', map { $words[rand @words] } 1 .. 8);
	} elsif ($kind < 8) {
		command('HSET', "user:$i", 'name', $words[rand @words], 'visits', int rand 1000, 'score', rand(), 'mail', "$words[rand @words]\@example.com");
	} elsif ($kind < 9) {
		command('SET', "thumb:$i", noise(1500 + int rand 3000));
	} else {
		command('RPUSH', "recent:" . int($i / 50), map { int rand 1e6 } 1 .. 20);
	}
}
