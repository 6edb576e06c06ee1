# churn.pl RATE edits a few bytes of RATE pages a second, anywhere in 128 MiB of
# text: memory that is dirty all over, and hardly changes.
use strict;
use warnings;
use Time::HiRes qw(time);
my ($rate) = @ARGV;
my ($page, $pages) = (4096, 32768);
my @words = map { join '', map { chr 97 + rand 26 } 1 .. 3 + rand 8 } 1 .. 3000;
my $text = '';
while (length $text < 256 * $page) {
	$text .= join ' ', map { $words[rand @words] } 1 .. 10000;
}
my $memory = substr($text, 0, 256 * $page) x ($pages / 256);
my ($owed, $last) = (0, time);
while (1) {
	select undef, undef, undef, 0.01;
	my $now = time;
	my $passed = $now - $last;
	$owed += $rate * ($passed < 0.1 ? $passed : 0.1);
	$last = $now;
	for (; $owed >= 1; $owed--) {
		substr($memory, $page * int(rand $pages) + int(rand $page - 16), 8) = pack 'NN', rand 2**32, rand 2**32;
	}
}
