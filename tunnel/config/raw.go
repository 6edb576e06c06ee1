package config

// The raw types are the file as it is written: strings, numbers and lists
// only. Their tags are the schema: toml names the key, eg is a right value
// shown to whoever wrote a wrong one (with ' for ").

type rawConfig struct {
	Site           string        `toml:"site" eg:"'dc1'"`
	RunDir         string        `toml:"run_dir" eg:"'/run/stitch/dc1'"`
	PrivateKeyFile string        `toml:"private_key_file" eg:"'dc1.key'"`
	Subnets        []string      `toml:"subnets" eg:"['10.1.0.0/24']"`
	OffloadOff     []string      `toml:"offload_off" eg:"['train']"`
	Peer           []rawPeer     `toml:"peer"`
	Segment        []rawSegment  `toml:"segment"`
	Domain         []rawDomain   `toml:"domain"`
	Class          []rawClass    `toml:"class"`
	Stream         []rawStream   `toml:"stream"`
	Dial           []rawDial     `toml:"dial"`
	History        rawHistory    `toml:"history"`
	Workload       []rawWorkload `toml:"workload"`
	Service        []rawService  `toml:"service"`
	DNS            *rawDNS       `toml:"dns"`
}

type rawPeer struct {
	Name             string   `toml:"name" eg:"'dc2'"`
	PublicKey        string   `toml:"public_key" eg:"'PUBLIC KEY PRINTED BY stitch keygen'"`
	PresharedKeyFile string   `toml:"preshared_key_file" eg:"'dc1-dc2.psk'"`
	Endpoint         string   `toml:"endpoint" eg:"'198.51.100.20:51820'"`
	ListenPort       *int64   `toml:"listen_port" eg:"51820"`
	Subnets          []string `toml:"subnets" eg:"['10.2.0.0/24']"`
	UnderlayMTU      *int64   `toml:"underlay_mtu" eg:"1500"`
	Rate             string   `toml:"rate" eg:"'100mbit'"`
	PacketHistory    string   `toml:"packet_history" eg:"'64MiB'"`
	HistoryFrom      []string `toml:"packet_history_from" eg:"['10.1.0.80/32']"`
	Stock            bool     `toml:"stock" eg:"true"`
	LinkAddresses    []string `toml:"link_addresses" eg:"['169.254.7.1', '169.254.7.2']"`
}

type rawSegment struct {
	ID             *int64   `toml:"id" eg:"100"`
	Bridge         string   `toml:"bridge" eg:"'br-lan'"`
	Subnet         string   `toml:"subnet" eg:"'10.1.0.0/24'"`
	Gateway        string   `toml:"gateway" eg:"'10.1.0.1'"`
	GatewayMAC     string   `toml:"gateway_mac" eg:"'02:53:54:00:01:00'"`
	Home           string   `toml:"home" eg:"'dc1'"`
	Peers          []string `toml:"peers" eg:"['dc2']"`
	BroadcastLimit *int64   `toml:"broadcast_limit" eg:"500"`
	MoveLimit      *int64   `toml:"move_limit" eg:"5"`
	VLANs          []any    `toml:"vlans" eg:"[10, '20-29']"`
	EtherTypes     []string `toml:"ether_types" eg:"['0x88f7', 'llc']"`
	Pass           []string `toml:"pass" eg:"['dhcp']"`
}

type rawDomain struct {
	Name    string `toml:"name" eg:"'migration'"`
	Tenants string `toml:"tenants" eg:"'one'"`
}

type rawClass struct {
	Name    string `toml:"name" eg:"'migration'"`
	Percent *int64 `toml:"percent" eg:"60"`
	Limit   string `toml:"limit" eg:"'80mbit'"`
}

type rawStream struct {
	Peer      string   `toml:"peer" eg:"'dc2'"`
	Segment   *int64   `toml:"segment" eg:"100"`
	To        []string `toml:"to" eg:"['10.2.0.0/24']"`
	Ports     []any    `toml:"ports" eg:"[22, '4000-5999']"`
	Handshake string   `toml:"handshake" eg:"'faithful'"`
	Optimize  string   `toml:"optimize" eg:"'full'"`
	Domain    string   `toml:"domain" eg:"'migration'"`
	Class     string   `toml:"class" eg:"'migration'"`
	Share     *int64   `toml:"share" eg:"4"`
}

type rawDial struct {
	Peer    string   `toml:"peer" eg:"'dc2'"`
	Segment *int64   `toml:"segment" eg:"100"`
	To      []string `toml:"to" eg:"['10.1.0.0/24']"`
	Ports   []any    `toml:"ports" eg:"[22, '4000-5999']"`
	Domain  string   `toml:"domain" eg:"'migration'"`
	Class   string   `toml:"class" eg:"'migration'"`
	Share   *int64   `toml:"share" eg:"4"`
}

type rawHistory struct {
	Size    string `toml:"size" eg:"'1GiB'"`
	Memory  string `toml:"memory" eg:"'1GiB'"`
	Dir     string `toml:"dir" eg:"'/var/lib/stitch/dc1'"`
	KeyFile string `toml:"key_file" eg:"'history.key'"`
}

type rawWorkload struct {
	Name    string `toml:"name" eg:"'app'"`
	MAC     string `toml:"mac" eg:"'52:54:00:00:00:50'"`
	IP      string `toml:"ip" eg:"'10.1.0.50'"`
	Site    string `toml:"site" eg:"'dc1'"`
	Segment *int64 `toml:"segment" eg:"100"`
}

type rawService struct {
	Name     string            `toml:"name" eg:"'www.app.example'"`
	Workload string            `toml:"workload" eg:"'app'"`
	Port     *int64            `toml:"port" eg:"443"`
	At       map[string]string `toml:"at" eg:"{ dc1 = '203.0.113.10:443' }"`
}

type rawDNS struct {
	Listen []string `toml:"listen" eg:"['203.0.113.10:53']"`
	TTL    string   `toml:"ttl" eg:"'5s'"`
}
