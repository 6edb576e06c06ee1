# traffic.pl SEED keeps Redis and the web server busy: a few sessions change
# and a few pages are fetched in each tenth of a second.
use strict;
use warnings;
use IO::Socket::INET;
my ($seed) = @ARGV;
srand($seed + time);
sub dial {
	my ($port) = @_;
	return IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port");
}
my $redis = dial(6379) or die "redis: $!";
for (my $n = 0 ;; $n++) {
	for (1 .. 6) {
		my $key = sprintf 'fresh:%d', rand 5000;
		my $value = sprintf '{"n":%d,"at":%d,"token":"%08x%08x"}', $n, time, rand 2**32, rand 2**32;
		print $redis "SET $key '$value'\r\n";
		<$redis>;
	}
	if ($n % 3 == 0 and my $web = dial(80)) {
		printf $web "GET /?item=%d HTTP/1.0\r\nHost: shop.example\r\n\r\n", rand 10000;
		1 while <$web>;
	}
	select undef, undef, undef, 0.1;
}
